import json

import pytest
import torch
from torch import nn

from circuitkeep.integrations import CircuitGuard

from .conftest import check_same
from .shared import CIRCUIT, SETTINGS, by_loop, rows, task_loss


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_is_the_callbacks(accumulate, held, expected, model_of):
    with_penalty = by_loop(model_of(), held(accumulate=accumulate), accumulate)
    without = by_loop(model_of(), None, accumulate)
    added = [one - other for one, other in zip(with_penalty, without, strict=True)]
    check_same(f"loop, accumulation {accumulate}", added, expected)


def train(model, guard, steps, first=0):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for batch in rows().split(2)[first : first + steps]:
        (task_loss(model, batch) + guard.penalty(model)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def new_guard(folder, **options):
    return CircuitGuard(CIRCUIT, reference=folder / "base.st", **{**SETTINGS, **options})


def test_the_first_call_makes_the_reference(tmp_path, model_of):
    model = model_of()
    guard = new_guard(tmp_path)
    assert guard.values() == {}
    assert guard.penalty(model).item() == pytest.approx(0, abs=1e-12)
    assert (tmp_path / "base.st").is_file()
    train(model, guard, 2)
    values = guard.values()
    terms = [values[f"circuit/guarded/penalty/{term}"] for term in ("pattern", "behaviour")]
    assert values["circuit/guarded/penalty"] == pytest.approx(sum(terms), rel=1e-6)
    assert min(terms) > 0


def test_weight_0_changes_no_bit(tmp_path, model_of):
    class Nothing:
        def penalty(self, model):
            return 0

    free = train(model_of(), Nothing(), 3)
    assert torch.equal(train(model_of(), new_guard(tmp_path, weight=0.0), 3), free)
    assert not (tmp_path / "base.st").exists()


def test_a_resumed_loop_goes_on_exactly(tmp_path, model_of):
    """With a weight that finds itself; through JSON, into another guard and another model."""
    options = {"constraint": 0.9, "warmup_steps": 0}
    whole = train(model_of(), new_guard(tmp_path, **options), 6)
    model, guard = model_of(), new_guard(tmp_path, **options)
    train(model, guard, 3)
    state = json.loads(json.dumps(guard.state_dict()))
    again, model_again = new_guard(tmp_path, **options), model_of(5)
    again.load_state_dict(state)
    model_again.load_state_dict(model.state_dict())
    assert torch.equal(train(model_again, again, 3, first=3), whole)
    forgetful = CircuitGuard(CIRCUIT, reference=tmp_path / "other.st", **{**SETTINGS, **options})
    model_again.load_state_dict(model.state_dict())
    assert not torch.equal(train(model_again, forgetful, 3, first=3), whole)


def test_an_evaluation_is_no_step(held, model_of):
    model, guard = model_of(), held()
    with torch.no_grad():
        assert guard.penalty(model).item() == 0
    assert guard.state_dict()["calls"] == 0
    assert guard.penalty(model).item() > 0


def test_a_step_that_is_told_has_one_penalty(held, model_of):
    model, guard = model_of(), held(accumulate=3, every_n_steps=2)
    due = [guard.penalty(model, step=step).item() > 0 for step in (0, 0, 1, 2, 2, 3)]
    assert due == [True, False, False, True, False, False]


def test_the_weight_falls_to_0_where_it_is_told(held, model_of):
    model = model_of()
    guard = held(decay="linear", total_steps=4, warmup_steps=0)
    assert guard.penalty(model, step=4).item() == 0
    with pytest.raises(ValueError, match="say when that is by total_steps"):
        held(decay="linear", warmup_steps=0).penalty(model)


def test_one_row_per_process_is_the_default(held, model_of, monkeypatch):
    """On one process 1 row, on three 3; more processes than rows are refused."""
    drawn = []
    options = {"rows_per_step": None, "warmup_steps": 0}
    for world in (1, 3, 9):
        guard = held(**options)
        inner = guard.guard._penalty

        def penalty(backend, step, training, n_rows, scale, inner=inner):
            drawn.append(n_rows)
            return inner(backend, step, training, n_rows, scale)

        guard.guard._penalty = penalty
        place = property(lambda self, world=world: (0, world))
        monkeypatch.setattr("circuitkeep.integrations.loop.TorchTraining.place", place)
        monkeypatch.setattr(
            "circuitkeep.integrations.loop.TorchTraining.from_first", lambda self, value: value
        )
        if world == 9:
            with pytest.raises(ValueError, match="rows_per_step=9 is more than pool_rows=8"):
                guard.penalty(model_of())
        else:
            guard.penalty(model_of())
    assert drawn == [1, 3]


def test_another_model_is_refused(held, model_of):
    guard = held()
    model = model_of()
    guard.penalty(model)
    guard.penalty(nn.Sequential(model))  # a wrapper of the same one
    with pytest.raises(ValueError, match="another model than before"):
        guard.penalty(model_of())


def test_what_was_not_measured_is_refused(held, model_of):
    class DeepSpeedEngine(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

    for wrap in (nn.DataParallel, DeepSpeedEngine):
        with pytest.raises(ValueError, match=f"under {wrap.__name__} the gradient has not been"):
            held().penalty(wrap(model_of()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "CircuitGuard: accumulate must be at least 1, got 0"),
        ({"weight": -1.0}, "CircuitGuard: weight must be >= 0, got -1.0"),
        ({"rows_per_step": 9}, "CircuitGuard: rows_per_step=9 is more than pool_rows=8"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        CircuitGuard(CIRCUIT, **{**SETTINGS, **options})
