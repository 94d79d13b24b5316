import math

import pytest
import torch

from circuitkeep.penalties import Activations, HeadOutputDrift, Labels


def naive(kind, reference, now):
    """One row and head: the distances at its counted queries, as lists of numbers."""
    squares = [sum(x * x for x in r) for r in reference]
    scale = sum(squares) / len(squares)
    distances = []
    for r, y in zip(reference, now, strict=True):
        if kind == "cosine":
            product = sum(a * b for a, b in zip(r, y, strict=True))
            distances.append(1 - product / math.hypot(*r) / math.hypot(*y))
        else:
            distances.append(sum((a - b) ** 2 for a, b in zip(r, y, strict=True)) / scale)
    return distances


@pytest.mark.parametrize("kind", ["relative_squared", "cosine"])
@pytest.mark.parametrize("queries", ["target", "all"])
def test_equals_naive_loop(parameters, labels, kind, queries):
    now, reference = (parameters(s).activations() for s in (1, 0))
    n_rows, n_heads = now.output.shape[:2]
    total = 0.0
    for row in range(n_rows):
        for head in range(n_heads):
            mask = labels.target_mask[row, head] if queries == "target" else labels.query_mask[row]
            if mask.any():
                values = naive(
                    kind,
                    reference.output[row, head][mask].tolist(),
                    now.output[row, head][mask].tolist(),
                )
                total += sum(values) / len(values)
    value = HeadOutputDrift("z", kind, queries)(now, reference, labels)
    assert value.item() == pytest.approx(total / (n_rows * n_heads), rel=1e-5)


@pytest.mark.parametrize(("kind", "expected"), [("relative_squared", 0.5), ("cosine", 0.2)])
def test_by_hand(kind, expected):
    # Squared errors 9 + 4 and 12, over a mean square of 25; cosines .8 and .8.
    reference = torch.tensor([[3.0, 4.0], [4.0, 3.0]])[None, None]
    now = torch.tensor([[0.0, 2.0], [4.0, 3.0 - math.sqrt(12)]])[None, None]
    if kind == "cosine":
        now[0, 0, 1] = torch.tensor([2.0, 0.0])
    both = torch.ones(1, 2, dtype=torch.bool)
    labels = Labels(
        both,
        both[:, None],
        both[:, None, None].expand(1, 1, 2, 2),
        torch.zeros(0, dtype=torch.long),
    )
    penalty = HeadOutputDrift("z", kind)
    value = penalty(Activations(output=now), Activations(output=reference), labels)
    assert value.item() == pytest.approx(expected)


def test_the_site_is_what_it_needs():
    assert HeadOutputDrift("z").needs == {"z"}
    assert HeadOutputDrift("result").needs == {"result"}


def test_a_tiny_output_among_others_does_not_explode(parameters, labels):
    now, reference = (parameters(s).activations() for s in (1, 0))
    reference.output[:, :, 2] = 1e-12
    assert HeadOutputDrift(queries="all")(now, reference, labels) < 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "pattern"}, "site='pattern': choose one of 'z', 'result'"),
        ({"kind": "l2"}, "kind='l2': choose one of 'relative_squared', 'cosine'"),
        ({"queries": "none"}, "queries='none': choose one of 'target', 'all'"),
    ],
)
def test_unknown_options_are_refused_with_the_choices(options, message):
    with pytest.raises(ValueError, match=message):
        HeadOutputDrift(**options)
