from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture import attach
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.evals.circuit import (
    behaviour_values,
    measure_circuit,
    ratio,
    retention,
    score_heads,
)
from circuitkeep.probing import probe_rows


@pytest.fixture
def batch(wired_model, wired_circuit):
    return probe_rows(wired_circuit, attach(wired_model), None, "held_out", 40, 0)


def test_wired_heads_score_and_others_do_not(wired_model, wired_circuit, batch):
    found = measure_circuit(attach(wired_model), wired_circuit, batch)
    for role in wired_circuit.roles:
        scores = found.scores[role.name]
        assert scores.shape == (40, 2, 4)
        for layer in range(2):
            for index in range(4):
                head = Head(layer, index)
                score = found.score(role.name, head)
                if head in role.heads:
                    assert score > 0.99, (role.name, head)
                else:
                    assert score < 0.3, (role.name, head)
    assert (found.behaviour == 1).all()
    assert (found.effect_nats > 1).all()


def test_scores_by_a_naive_loop(tiny_model):
    model = tiny_model("llama")
    backend = attach(model)
    circuit = Circuit(
        "c",
        (Role("induction", (Head(1, 1), Head(0, 3))),),
        {
            "_target_": "circuitkeep.probes.RepeatedTokens",
            "length": 12,
            "segment": [3, 4],
            "prefix": [0, 1],
        },
        "accuracy",
        "made up",
    )
    batch = probe_rows(circuit, backend, None, "held_out", 35, 1)
    target = batch.targets["induction"].clone()
    target[2] = False  # nothing to attend to in this row
    batch = replace(batch, targets={"induction": target})
    scores = score_heads(backend, batch, ["induction"])["induction"]
    model.set_attn_implementation("eager")
    own = torch.stack(model(batch.tokens, output_attentions=True).attentions, 1)
    for row in (0, 2, 34):
        queries = [q for q in range(12) if target[row, q].any()]
        for layer, index in ((1, 1), (0, 3), (1, 0)):
            paid = [own[row, layer, index, q][target[row, q]].sum().item() for q in queries]
            score = scores[row, layer, index].item()
            if queries:
                assert score == pytest.approx(sum(paid) / len(paid), rel=1e-4)
            else:
                assert score != score
    found = measure_circuit(backend, circuit, batch, causal=False)
    assert found.effect_nats.isnan().all()
    mean = (scores[:, 1, 1] + scores[:, 0, 3]) / 2
    assert_close(found.role_scores(circuit)["induction"], mean, equal_nan=True)
    assert found.score("induction", Head(1, 1)) == pytest.approx(scores[:, 1, 1].nanmean().item())


def test_a_head_that_attends_but_no_longer_writes(wired_model, wired_circuit, batch):
    backend = attach(wired_model)
    base = measure_circuit(backend, wired_circuit, batch)
    kept = retention(base, base, wired_circuit)
    assert kept == pytest.approx(dict.fromkeys(kept, 1.0))
    with torch.no_grad():
        wired_model.model.layers[1].self_attn.o_proj.weight[:, 2 * 64 : 3 * 64] = 0
    now = measure_circuit(backend, wired_circuit, batch)
    kept = retention(now, base, wired_circuit)
    assert kept["identity_retention"] == pytest.approx(1, abs=1e-3)
    assert kept["causal_retention"] == pytest.approx(0, abs=1e-3)
    assert kept["behaviour_retention"] < 0.15


def test_a_head_that_writes_but_attends_elsewhere(wired_model, wired_circuit, batch):
    backend = attach(wired_model)
    base = measure_circuit(backend, wired_circuit, batch)
    with torch.no_grad():
        wired_model.model.layers[0].self_attn.q_proj.weight.zero_()
    kept = retention(measure_circuit(backend, wired_circuit, batch), base, wired_circuit)
    assert kept["identity_retention"] < 0.5, "the previous-token head, and what builds on it"
    assert kept["behaviour_retention"] < 0.5


def test_behaviours_by_a_naive_loop(tiny_model, wired_circuit):
    model = tiny_model("llama")
    backend = attach(model)
    batch = probe_rows(wired_circuit, backend, None, "held_out", 34, 0)
    distractor = (batch.answer + 1) % 32
    batch = replace(batch, distractor=distractor)

    def logits(subject, row, position):
        return model(subject.tokens[row, : position + 1][None]).logits[0, -1]

    expected = {"accuracy": [], "advantage_nats": [], "logit_difference": []}
    for row in (0, 33):
        hits, gains, gaps = [], [], []
        for i in (batch.answer_row == row).nonzero()[:, 0].tolist():
            position, answer = int(batch.answer_position[i]), int(batch.answer[i])
            clean = logits(batch, row, position)
            other = logits(batch.corrupted, row, position)
            hits.append(float(clean.argmax() == answer))
            gains.append((clean.log_softmax(-1) - other.log_softmax(-1))[answer].item())
            gaps.append((clean[answer] - clean[distractor[i]]).item())
        for name, values in zip(expected, (hits, gains, gaps), strict=True):
            expected[name].append(sum(values) / len(values))
    for name, values in expected.items():
        circuit = replace(wired_circuit, behaviour=name)
        found = behaviour_values(backend, circuit, batch)
        assert found.shape == (34,)
        assert found[[0, 33]].tolist() == pytest.approx(values, rel=1e-3, abs=1e-5)


def test_the_advantage_of_the_context(wired_model, wired_circuit, batch):
    circuit = replace(wired_circuit, behaviour="advantage_nats")
    assert (measure_circuit(attach(wired_model), circuit, batch).behaviour > 1).all()


def test_what_cannot_be_measured(wired_model, wired_circuit, batch):
    backend = attach(wired_model)

    def measure(circuit, rows=batch):
        measure_circuit(backend, circuit, rows)

    heads = {"previous-token": [Head(2, 0)], "induction": [Head(1, 2)]}
    with pytest.raises(ValueError, match="L2H0 is outside the model"):
        measure(wired_circuit.with_heads(heads, "deep"))
    with pytest.raises(ValueError, match="does not label the role 'inductor'; did you mean 'indu"):
        measure(replace(wired_circuit, roles=(Role("inductor", (Head(1, 2),)),)))
    with pytest.raises(ValueError, match=r"no distractor, which 'logit_difference' needs"):
        measure(replace(wired_circuit, behaviour="logit_difference"))
    with pytest.raises(ValueError, match=r"no corrupted prompts, which 'advantage_nats' compares"):
        measure(replace(wired_circuit, behaviour="advantage_nats"), replace(batch, corrupted=None))


def test_ratios():
    nan = float("nan")
    assert ratio(torch.tensor([1.0, nan, 2.0]), torch.tensor([2.0, nan, 4.0])) == 0.5
    assert ratio(torch.tensor([-1.0]), torch.tensor([2.0])) == -0.5
    for base in (0.0, -1.0, nan):
        result = ratio(torch.tensor([1.0]), torch.tensor([base]))
        assert result != result, "a ratio to nothing says nothing"
