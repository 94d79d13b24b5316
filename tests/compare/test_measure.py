import json
import math
import weakref

import pytest
import torch

from circuitkeep.capture.checkpoints import load_checkpoint
from circuitkeep.capture.models import build_embedded, save_model
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.compare import measure
from circuitkeep.compare.measure import circuit_result, compare
from circuitkeep.evals import CircuitMeasurement

PROBE = {"_target_": "circuitkeep.probes.RepeatedTokens", "exclude": [1]}


HEADS = (Head(1, 0), Head(1, 2))


def induction(name="induction", heads=HEADS):
    return Circuit(name, (Role("induction", heads),), PROBE, "accuracy", "test")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A base, the same again, one with other weights, and a Lightning checkpoint of that one."""
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("base", 0), ("same", 0), ("other", 1)):
        save_model(build_embedded(seed), folder / name)
    state = {f"model.{k}": v for k, v in build_embedded(1).state_dict().items()}
    torch.save({"state_dict": state}, folder / "other.ckpt")
    return folder


def batches(seed=3):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 64, (4, 16), generator=generator)
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}]


def test_the_base_keeps_everything_of_itself_and_so_does_a_copy(models):
    report = compare(
        models / "base",
        {"same": models / "same", "other": models / "other", "ckpt": models / "other.ckpt"},
        [induction()],
        datasets={"text": batches()},
        rows=12,
    )
    same, other, ckpt = report.checkpoints
    assert report.base.circuits["induction"].identity_retention == 1
    assert same.circuits["induction"].identity_retention == 1
    assert same.circuits["induction"].identity_interval == (1, 1)
    assert same.capability["text"] == report.base.capability["text"]
    assert other.circuits["induction"].identity_retention != 1
    assert other.capability["text"] != report.base.capability["text"]
    # The Lightning file holds the same weights as the directory. (No NaN equals another.)
    assert repr(ckpt.circuits) == repr(other.circuits)
    assert ckpt.capability == other.capability

    description = report.circuits["induction"]
    assert description.rows == 12
    assert description.roles == {"induction": ("L1H0", "L1H2")}
    content = json.loads(report.to_json())
    assert [c["name"] for c in content["checkpoints"]] == ["same", "other", "ckpt"]
    assert set(content["checkpoints"][0]["circuits"]["induction"]) >= {
        "identity_retention",
        "causal_retention",
        "behaviour_retention",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"circuits": []}, "at least one circuit"),
        ({"checkpoints": {}}, "at least one checkpoint"),
        ({"circuits": [induction(), induction()]}, "same name"),
        ({"checkpoints": {"x": "/nowhere/model"}}, "/nowhere/model"),
        ({"circuits": [induction(heads=(Head(2, 0),))]}, "outside the model"),
        ({"prompts": ["5", ""]}, "a prompt is empty"),
        ({"prompts": ["5 64"]}, "the token 64, and the model's tokens run from 0 to 63"),
        ({"replicates": {"a": ["other"]}}, "there is no checkpoint 'other'"),
        ({"probes": {"x": {"lenght": 3}}}, "transfer.probes.x fits no circuit"),
        ({"origins": {"smae": "text"}}, "did you mean 'same'"),
    ],
)
def test_what_cannot_be_compared_is_said_at_once(models, changes, message):
    arguments = {"checkpoints": {"same": models / "same"}, "circuits": [induction()], "rows": 4}
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        compare(models / "base", **{**arguments, **changes})


def measurement(scores, effect, behaviour):
    """One role, one layer of one head."""
    column = torch.tensor(scores)[:, None, None]
    return CircuitMeasurement({"induction": column}, torch.tensor(effect), torch.tensor(behaviour))


def test_retentions_by_hand():
    base = measurement([0.8, 0.4, math.nan], [2.0, 2.0, 2.0], [1.0, 0.5, 0.0])
    now = measurement([0.4, 0.2, math.nan], [1.0, 2.0, 0.0], [1.0, 0.5, 1.5])
    found = circuit_result(now, base, induction(heads=(Head(0, 0),)), {"L0H0": 2.5})
    assert found.identity_retention == pytest.approx(0.5)
    assert found.identity_interval == pytest.approx((0.5, 0.5))  # every pair of rows says a half
    assert found.causal_retention == pytest.approx(0.5)
    assert found.behaviour_retention == pytest.approx(2.0)
    assert found.causal_interval[0] < 0.5 < found.causal_interval[1]
    assert found.role_scores == {"induction": {"L0H0": pytest.approx(0.3)}}
    assert found.contributions == {"L0H0": 2.5}
    assert math.isnan(found.rankings["induction"].spearman)  # of a single head


def test_a_base_of_zero_gives_no_ratio():
    base = measurement([0.8, 0.4], [0.0, 0.0], [-1.0, 0.5])
    found = circuit_result(base, base, induction(heads=(Head(0, 0),)), {})
    assert found.identity_retention == 1
    assert math.isnan(found.causal_retention)
    assert math.isnan(found.behaviour_interval[0])


def test_one_model_is_alive_however_many_checkpoints(models, monkeypatch):
    alive, seen = weakref.WeakSet(), []

    def loaded(path, base):
        seen.append(len(alive))
        model = load_checkpoint(path, base)
        alive.add(model)
        return model

    monkeypatch.setattr(measure, "load_checkpoint", loaded)
    checkpoints = {f"step{step}": models / "same" for step in range(5)}
    compare(models / "base", checkpoints, [induction()], datasets={"text": batches()}, rows=4)
    # Before each model is loaded, the one before it is gone.
    assert seen == [0] * 6


def test_a_trajectory_is_in_the_order_of_its_steps(models):
    checkpoints = {"step=100": models / "other", "step=20": models / "same"}
    told = []
    report = compare(
        models / "base", checkpoints, [induction()], rows=4, progress=told.append, trajectory=True
    )
    assert report.steps == (20, 100)
    assert told == ["base", "step=20", "step=100"]
    assert [each.name for each in report.checkpoints] == ["step=20", "step=100"]
    first, last = (each.circuits["induction"] for each in report.checkpoints)
    base = report.base.circuits["induction"]
    assert first.contributions == base.contributions != last.contributions
    assert list(base.contributions) == ["L1H0", "L1H2"]
    assert first.rankings["induction"].spearman == 1 > last.rankings["induction"].spearman
    assert report.circuits["induction"].contribution.startswith("direct logit attribution")


def test_a_trajectory_without_steps_is_refused_before_anything_is_loaded(models, monkeypatch):
    monkeypatch.setattr(measure, "load_checkpoint", None)
    with pytest.raises(ValueError, match="'same' tells no training step"):
        compare(models / "base", {"same": models / "same"}, [induction()], trajectory=True)


def test_prompts_replicates_and_further_probes(models):
    report = compare(
        models / "base",
        {name: models / name.rstrip("01") for name in ("same0", "same1", "other0", "other1")},
        [induction()],
        datasets={"text": batches()},
        rows=8,
        prompts=["0 5 9 5", "7 7"],
        replicates={"plain": ["same0", "same1"], "changed": ["other0", "other1"]},
        probes={"short": {"length": 16, "segment": [4, 6], "prefix": [0, 2]}},
        origins={"same0": "nothing", "same1": "nothing"},
    )
    first, second = report.prompts
    assert (first.tokens, second.tokens) == (("0", "5", "9", "5"), ("7", "7"))
    assert len(first.patterns) == 5
    assert len(first.heads) == 8
    assert torch.equal(first.patterns[0], first.patterns[2])
    assert not torch.equal(first.patterns[0], first.patterns[4])
    plain, changed = report.replicates
    assert plain.circuits["induction"]["identity"].share.mean == pytest.approx(1)
    assert list(plain.circuits) == ["induction"]
    apart = changed.circuits["induction"]["identity"].difference
    kept = report.checkpoints[2].circuits["induction"].identity_retention
    assert apart.mean == pytest.approx(kept - 1)
    assert changed.losses["text"].difference.mean != 0
    assert [column.name for column in report.transfer.columns] == ["induction", "induction, short"]
    assert [(row.name, row.trained_on) for row in report.transfer.rows] == [
        ("plain", "nothing"),
        ("changed", "changed"),
    ]
    share, _ = report.transfer.rows[0].shares["induction, short"]["identity"]
    assert share == pytest.approx(1)


def test_one_circuit_under_one_probe_is_no_matrix(models):
    report = compare(models / "base", {"same": models / "same"}, [induction()], rows=4)
    assert report.transfer is None
    assert report.prompts == report.replicates == ()
