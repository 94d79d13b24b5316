import math

import pytest
import torch
from scipy import stats

from circuitkeep.capture import attach
from circuitkeep.capture.models import build_embedded
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.compare import heads
from circuitkeep.compare.heads import (
    contributions,
    moved_heads,
    rank_correlation,
    rankings,
    top_overlap,
)
from circuitkeep.compare.report import MovedHeads, Ranking
from circuitkeep.evals import CircuitMeasurement
from circuitkeep.probing import probe_rows

PROBE = {"_target_": "circuitkeep.probes.RepeatedTokens", "exclude": [1]}
CIRCUIT = Circuit(
    "induction", (Role("induction", (Head(1, 0), Head(1, 2))),), PROBE, "accuracy", "test"
)


def measurement(layers):
    """Two rows whose mean is `layers`; a third has no target."""
    scores = torch.tensor(layers)
    rows = torch.stack([scores + 0.02, scores - 0.02, torch.full_like(scores, math.nan)])
    return CircuitMeasurement({"induction": rows}, torch.zeros(3), torch.zeros(3))


BASE = measurement([[0.02, 0.03, 0.04, 0.05], [0.9, 0.1, 0.8, 0.3]])
NOW = measurement([[0.02, 0.03, 0.04, 0.05], [0.2, 0.6, 0.7, 0.3]])


def test_who_lost_the_job_and_who_took_it_up():
    moved = moved_heads(CIRCUIT, NOW, BASE)
    assert moved == {"induction": MovedHeads(("L1H0",), ("L1H1",))}
    assert moved_heads(CIRCUIT, BASE, BASE) == {"induction": MovedHeads()}


def test_ranking_by_hand():
    found = rankings(CIRCUIT, NOW, BASE)["induction"]
    # Layer 0 ranks as before; the heads of layer 1 ranked 8, 5, 7, 6, now 5, 7, 8, 6.
    assert found.spearman == pytest.approx(1 - 6 * (9 + 4 + 1 + 0) / (8 * 63))
    assert found.top_named == 0.5  # of heads 0 and 2, head 2 is still among the best two
    assert math.isnan(found.top_10)  # eight heads in all
    same = rankings(CIRCUIT, BASE, BASE)["induction"]
    assert (same.spearman, same.top_named) == (1, 1)
    assert isinstance(same, Ranking)


def test_rank_correlation_is_scipys_with_ties():
    now, base = torch.tensor([3.0, 1.0, 1.0, 0.0]), torch.tensor([2.0, 2.0, 1.0, 0.5])
    ranks = [stats.rankdata(each.numpy()) for each in (now, base)]
    assert rank_correlation(now, base) == pytest.approx(stats.pearsonr(*ranks).statistic)
    assert rank_correlation(-base, base) == pytest.approx(-1)


@pytest.mark.parametrize("flat", [(0, 1), (1, 0)])
def test_heads_that_all_score_alike_have_no_order(flat):
    values = torch.stack([torch.ones(4), torch.arange(4.0)])
    assert math.isnan(rank_correlation(values[flat[0]], values[flat[1]]))


def test_top_overlap():
    base = torch.arange(20.0)
    assert top_overlap(base, base, 10) == 1
    assert top_overlap(-base, base, 10) == 0
    assert top_overlap(base.roll(3), base, 10) == 0.7
    assert math.isnan(top_overlap(base, base, 20))


def test_contributions_are_the_means_over_rows():
    backend = attach(build_embedded(0))
    batch = probe_rows(CIRCUIT, backend, None, "held_out", 6, 1)
    found, method = contributions(backend, CIRCUIT, batch)
    said = heads.direct_attribution(backend, batch).heads
    assert found == {
        "L1H0": pytest.approx(said[:, 1, 0].mean().item()),
        "L1H2": pytest.approx(said[:, 1, 2].mean().item()),
    }
    assert found["L1H0"] != found["L1H2"]
    assert "the mean of all logits" in method


def test_a_model_that_cannot_be_taken_apart_has_no_contributions(monkeypatch):
    def refuse(backend, batch):
        raise ValueError("a softcap")

    monkeypatch.setattr(heads, "direct_attribution", refuse)
    backend = attach(build_embedded(0))
    batch = probe_rows(CIRCUIT, backend, None, "held_out", 2, 1)
    found, method = contributions(backend, CIRCUIT, batch)
    assert method == "not measured: a softcap"
    assert all(map(math.isnan, found.values()))
    assert list(found) == ["L1H0", "L1H2"]
