"""What every penalty promises."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.penalties import (
    Activations,
    BehaviourKL,
    HeadOutputDrift,
    HeadScoreFloor,
    Labels,
    PatternDivergence,
    Sum,
)

PENALTIES = {
    **{
        f"pattern-{kind}-{queries}": PatternDivergence(kind, queries)
        for kind in ("kl", "js", "squared")
        for queries in ("target", "all")
    },
    **{
        f"output-{kind}-{queries}": HeadOutputDrift("z", kind, queries)
        for kind in ("relative_squared", "cosine")
        for queries in ("target", "all")
    },
    "floor": HeadScoreFloor(0.0),
    "floor-margin": HeadScoreFloor(0.05),
    "behaviour": BehaviourKL(),
    "sum": Sum(
        {"pattern": PatternDivergence(), "output": HeadOutputDrift(), "behaviour": BehaviourKL()},
        {"pattern": 0.5, "behaviour": 2.0},
    ),
}


@pytest.fixture(params=list(PENALTIES))
def penalty(request):
    return PENALTIES[request.param]


def part(activations, labels, rows):
    """The activations and labels of some rows, as another rank would hold them."""
    order = (labels.answer_row[None] == rows[:, None]).nonzero()
    return (
        Activations(
            activations.pattern[rows], activations.output[rows], activations.log_probs[order[:, 1]]
        ),
        Labels(labels.query_mask[rows], labels.target_mask[rows], labels.target[rows], order[:, 0]),
    )


def test_zero_with_zero_gradient_at_the_reference(penalty, parameters, labels):
    now = parameters(0, torch.float64).map(torch.Tensor.requires_grad_)
    value = penalty(now.activations(), parameters(0, torch.float64).activations(), labels)
    value.backward()
    assert value.shape == ()
    assert_close(value.item(), 0.0, rtol=0, atol=1e-15)
    for tensor in now.tensors:
        assert tensor.grad is None or tensor.grad.abs().max() < 1e-15


def test_gradcheck(penalty, parameters, labels):
    reference = parameters(0, torch.float64).activations()
    now = parameters(1, torch.float64).map(torch.Tensor.requires_grad_)
    value = penalty(now.activations(), reference, labels)
    used = [
        t
        for t in now.tensors
        if torch.autograd.grad(value, t, None, True, allow_unused=True)[0] is not None
    ]
    assert used

    def of(*tensors):
        given = dict(zip(map(id, used), tensors, strict=True))
        return penalty(now.map(lambda t: given.get(id(t), t)).activations(), reference, labels)

    assert torch.autograd.gradcheck(of, used)


def test_rises_with_damage(penalty, parameters, labels):
    base, damaged = parameters(0), parameters(1)
    # The floor sees only attention that leaves the targets.
    damaged.scores = base.scores - 3 * labels.target
    values = [
        penalty(base.towards(damaged, weight).activations(), base.activations(), labels).item()
        for weight in (0.0, 0.25, 0.5, 1.0)
    ]
    assert values == sorted(values)
    assert values[-1] > values[-2] > 0


def test_saturated_attention_and_outputs_give_finite_value_and_gradient(
    penalty, parameters, labels
):
    now = parameters(1).map(lambda t: (1e4 * t).requires_grad_())
    reference = parameters(0).map(lambda t: 1e4 * t).activations()
    assert now.activations().pattern.eq(1).any()
    value = penalty(now.activations(), reference, labels)
    value.backward()
    assert value.isfinite()
    for tensor in now.tensors:
        assert tensor.grad is None or tensor.grad.isfinite().all()


def test_nothing_labelled_is_zero_with_zero_gradient(penalty, parameters, labels):
    empty = Labels(
        *(torch.zeros_like(t) for t in (labels.query_mask, labels.target_mask, labels.target)),
        labels.answer_row[:0],
    )
    now = parameters(1).map(torch.Tensor.requires_grad_)
    activations, reference = (
        replace(a, log_probs=a.log_probs[:0])
        for a in (now.activations(), parameters(0).activations())
    )
    value = penalty(activations, reference, empty)
    value.backward()
    assert value == 0
    for tensor in now.tensors:
        assert tensor.grad is None or (tensor.grad == 0).all()


@pytest.mark.parametrize("sizes", [(2, 3), (1, 4), (3, 1, 1), (0, 5)])
def test_the_whole_is_the_share_weighted_mean_of_uneven_parts(penalty, parameters, labels, sizes):
    now, reference = (parameters(s, torch.float64).activations() for s in (1, 0))
    whole = penalty(now, reference, labels)
    parts = []
    for rows in torch.arange(5).split(list(sizes)):
        own_now, own_labels = part(now, labels, rows)
        own_reference, _ = part(reference, labels, rows)
        parts.append(len(rows) / 5 * penalty(own_now, own_reference, own_labels))
    assert_close(sum(parts), whole)


def test_padding_does_not_count(penalty, parameters, labels):
    now, reference = parameters(1).activations(), parameters(0).activations()
    padding = ~labels.query_mask[:, None, :, None]
    other = Activations(
        now.pattern.masked_fill(padding, 0.7), now.output.masked_fill(padding, 9), now.log_probs
    )
    assert_close(penalty(other, reference, labels), penalty(now, reference, labels))


def test_half_precision_is_compared_in_fp32(penalty, parameters, labels):
    now, reference = (parameters(s, torch.bfloat16).activations() for s in (1, 0))
    value = penalty(now, reference, labels)
    assert value.dtype == torch.float32
    wide = [
        Activations(a.pattern.float(), a.output.float(), a.log_probs.float())
        for a in (now, reference)
    ]
    assert_close(value, penalty(*wide, labels), rtol=1e-6, atol=0)
    # A reference kept in half precision, against activations in full.
    assert penalty(wide[0], reference, labels) == value


def test_the_reference_gets_no_gradient(penalty, parameters, labels):
    reference = parameters(0).map(torch.Tensor.requires_grad_)
    now = parameters(1).map(torch.Tensor.requires_grad_)
    penalty(now.activations(), reference.activations(), labels).backward()
    assert all(tensor.grad is None for tensor in reference.tensors)


def test_nothing_waits_for_the_device(penalty, parameters, labels):
    # On the meta device a value that is read, or a shape that depends on one, is an error.
    now, reference = (
        Activations(a.pattern.to("meta"), a.output.to("meta"), a.log_probs.to("meta"))
        for a in (parameters(1).activations(), parameters(0).activations())
    )
    moved = Labels(
        labels.query_mask.to("meta"),
        labels.target_mask.to("meta"),
        labels.target.to("meta"),
        labels.answer_row.to("meta"),
    )
    assert penalty(now, reference, moved).shape == ()


def test_only_what_is_needed_is_read(penalty, parameters, labels):
    names = {"z": "output", "result": "output"}
    read = {names.get(need, need) for need in penalty.needs}
    now, reference = (parameters(s).activations() for s in (1, 0))
    full = penalty(now, reference, labels)
    others = dict.fromkeys({"pattern", "output", "log_probs"} - read)
    assert penalty(replace(now, **others), replace(reference, **others), labels) == full
    for name in read:
        with pytest.raises(ValueError, match=f"reference activations hold no '{name}'"):
            penalty(now, replace(reference, **{name: None}), labels)
        with pytest.raises(ValueError, match=f"current activations hold no '{name}'"):
            penalty(replace(now, **{name: None}), reference, labels)


def test_a_reference_of_other_rows_is_refused(penalty, parameters, labels):
    now, reference = (parameters(s).activations() for s in (1, 0))
    shorter = Activations(reference.pattern[:1], reference.output[:1], reference.log_probs[:1])
    with pytest.raises(ValueError, match="same probe rows"):
        penalty(now, shorter, labels)


def test_all_queries_are_asked_for_only_where_read(penalty, parameters, labels):
    now, reference = (parameters(s).activations() for s in (1, 0))
    untargeted = ~labels.target_mask[..., None]
    changed = replace(
        now,
        pattern=torch.where(untargeted, reference.pattern, now.pattern),
        output=torch.where(untargeted, reference.output, now.output),
    )
    same = penalty(changed, reference, labels) == penalty(now, reference, labels)
    assert same != penalty.all_queries
