import math

import pytest
import torch

from circuitkeep.penalties import Activations, Labels, PatternDivergence


@pytest.mark.parametrize("queries", ["target", "all"])
def test_equals_naive_loop(parameters, labels, queries):
    now, reference = (parameters(s).activations() for s in (1, 0))
    total = 0.0
    n_rows, n_heads, n_queries, n_keys = now.pattern.shape
    for row in range(n_rows):
        for head in range(n_heads):
            values = []
            for query in range(n_queries):
                counts = (
                    labels.target_mask[row, head, query]
                    if queries == "target"
                    else labels.query_mask[row, query]
                )
                if counts:
                    r = reference.pattern[row, head, query].tolist()
                    a = now.pattern[row, head, query].tolist()
                    values.append(
                        sum(r[k] * math.log(r[k] / a[k]) for k in range(n_keys) if r[k] > 0)
                    )
            total += sum(values) / len(values) if values else 0.0
    expected = total / (n_rows * n_heads)
    value = PatternDivergence("kl", queries)(now, reference, labels)
    assert value.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "queries", "expected"),
    [
        ("kl", "target", math.log(2)),
        ("kl", "all", math.log(2) / 2),
        ("js", "target", math.log(4 / 3) * 3 / 4),
        ("squared", "target", 0.5),
        ("squared", "all", 0.25),
    ],
)
def test_by_hand(kind, queries, expected):
    # One row, one head: the second query was all on key 0 and is now split.
    reference = torch.tensor([[1.0, 0.0], [1.0, 0.0]])[None, None]
    now = torch.tensor([[1.0, 0.0], [0.5, 0.5]])[None, None]
    target = torch.tensor([[0, 0], [1, 0]], dtype=torch.bool)[None, None]
    labels = Labels(
        torch.ones(1, 2, dtype=torch.bool), target.any(-1), target, torch.zeros(0, dtype=torch.long)
    )
    value = PatternDivergence(kind, queries)(Activations(now), Activations(reference), labels)
    assert value.item() == pytest.approx(expected)


def test_blind_to_the_value_path(parameters, labels):
    now, reference = (parameters(s).activations() for s in (1, 0))
    moved = Activations(reference.pattern, now.output, now.log_probs)
    assert PatternDivergence()(moved, reference, labels) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "k1"}, "kind='k1': choose one of 'kl', 'js', 'squared'"),
        ({"queries": "some"}, "queries='some': choose one of 'target', 'all'"),
    ],
)
def test_unknown_options_are_refused_with_the_choices(options, message):
    with pytest.raises(ValueError, match=message):
        PatternDivergence(**options)
