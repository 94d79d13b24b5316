import json
from dataclasses import replace

NAN = float("nan")


def test_json_has_the_attributes_as_keys(report):
    content = json.loads(report.to_json())
    keys = ["base", "checkpoints", "circuits", "created", "command", "versions", "steps"]
    assert list(content) == [*keys, "prompts", "replicates", "transfer", "graph_parts"]
    assert [each["name"] for each in content["checkpoints"]] == [
        "unregularized",
        "patterns-only",
        "regularized",
    ]
    checkpoint = content["checkpoints"][2]
    assert checkpoint["capability"]["repeats"]["loss_nats"] == 1.231
    circuit = checkpoint["circuits"]["induction"]
    assert circuit["identity_retention"] == 0.97
    assert circuit["behaviour_interval"] == [0.97, 1.01]
    assert circuit["role_scores"]["previous token"]["L0H2"] == 0.95 * 0.97
    assert len(circuit["scores"]["induction"]) == 2
    assert content["circuits"]["induction"]["rows"] == 256
    assert circuit["contributions"]["L1H0"] == 7.25 * 0.98
    assert circuit["rankings"]["induction"] == {
        "spearman": 2 * 0.97 - 1,
        "top_named": 0.97,
        "top_10": None,
    }
    moved = content["checkpoints"][0]["circuits"]["induction"]["moved"]["induction"]
    assert moved == {"lost": ["L1H0", "L1H3"], "risen": ["L0H3"]}


def test_json_writes_nan_as_null(report):
    result = replace(
        report.base.circuits["induction"], causal_retention=NAN, causal_interval=(NAN, NAN)
    )
    base = replace(report.base, circuits={"induction": result})
    circuit = json.loads(replace(report, base=base).to_json())["base"]["circuits"]["induction"]
    assert circuit["causal_retention"] is None
    assert circuit["causal_interval"] == [None, None]
