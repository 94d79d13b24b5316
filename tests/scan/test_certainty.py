from dataclasses import replace

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.circuits import Head
from circuitkeep.evals.circuit import score_heads
from circuitkeep.probes import RepeatedTokens
from circuitkeep.probes.targets import shifted_target
from circuitkeep.probing import probe_context
from circuitkeep.scan.certainty import best_offset, certify

PROBE = RepeatedTokens(
    length=24, segment=(8, 12), prefix=(0, 3), exclude=[35], more_labels=["first-token", "local-4"]
)
ARCHITECTURES = ["gpt2", "llama", "neox", "qwen3"]


@pytest.fixture
def wired_probe():
    return RepeatedTokens(length=32, segment=(9, 14), prefix=(0, 3))


def test_the_wired_heads_are_reported(wired_model, wired_circuit, wired_probe):
    findings = certify(attach(wired_model), None, wired_probe, rows=24)
    assert len(findings) == 3 * 2 * 4
    found = {(f.role, f.head) for f in findings if f.reported}
    assert found == {(role.name, head) for role in wired_circuit.roles for head in role.heads}
    for finding in findings:
        low, high = finding.interval
        assert low <= finding.score <= high
        assert (finding.offset is None) == (finding.role != "induction")
        assert 0 <= finding.p <= 1
        if finding.reported:
            assert finding.p < 1e-3
            assert finding.score > 0.99
            assert finding.random_score < 0.5
            assert finding.matched_score < 0.3
            assert finding.offset in (None, 1)


def test_scores_are_those_of_the_scan_over_all_seeds(wired_model, wired_probe):
    backend = attach(wired_model)
    seeds = (1, 2, 3)
    findings = certify(
        backend, None, wired_probe, ["duplicate-token"], rows=8, seeds=seeds, twins=2
    )
    context = probe_context(backend)
    scores = torch.cat(
        [
            score_heads(
                backend, wired_probe.batch(context, "held_out", 8, seed), ["duplicate-token"]
            )["duplicate-token"]
            for seed in seeds
        ]
    )
    for finding in findings:
        expected = scores[:, finding.head.layer, finding.head.index].nanmean().item()
        assert finding.score == pytest.approx(expected, rel=1e-5)


def test_a_weak_score_is_no_role_however_certain(wired_model, wired_probe):
    def reported(least):
        findings = certify(attach(wired_model), None, wired_probe, rows=24, least=least)
        return {f.head for f in findings if f.reported}

    assert reported(0.9) == {Head(0, 1), Head(1, 2)}
    assert reported(1.1) == set()


def test_best_offset_is_of_the_mean_and_skips_what_cannot_be():
    scores = torch.full((3, 2, 4, 1, 2), 0.2)
    scores[1, ..., 0] = 0.3
    scores[2, 0, 0, 0, 1] = 0.9
    assert best_offset(scores).tolist() == [[1, 2]]
    scores[2] = torch.nan
    assert best_offset(scores).tolist() == [[1, 0]]


def test_what_cannot_be_tested_is_refused(tiny_model):
    backend = attach(tiny_model("llama"))
    with pytest.raises(ValueError, match="did you mean 'induction'"):
        certify(backend, None, PROBE, ["inductoin"])
    with pytest.raises(ValueError, match=r"over at least 3 seeds, got \[1, 1, 2\]"):
        certify(backend, None, PROBE, seeds=[1, 1, 2])
    with pytest.raises(ValueError, match="at least 2 random-weight twins, got 1"):
        certify(backend, None, PROBE, twins=1)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 5"):
        certify(backend, None, PROBE, level=5.0)
    far = RepeatedTokens(length=24, segment=(8, 12), prefix=(0, 3), more_labels=["offset-30"])
    with pytest.raises(
        ValueError, match=r"fewer than 2 prompts of a seed have a target .*offset-30"
    ):
        certify(backend, None, far, ["offset-30"], rows=4)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_nothing_is_reported_in_random_models(tiny_model, kind):
    for seed in range(2):
        findings = certify(attach(tiny_model(kind, seed)), None, PROBE, rows=24)
        assert not any(finding.reported for finding in findings)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_nothing_is_reported_in_19_of_20_random_models(tiny_model, kind):
    empty = significant = 0
    for seed in range(20):
        findings = certify(attach(tiny_model(kind, seed)), None, PROBE, rows=32)
        empty += not any(finding.reported for finding in findings)
        significant += any(finding.p <= 0.05 for finding in findings)
    assert empty >= 19
    assert significant <= 1, "already without the least score"


def test_a_bridge_is_tested_as_the_model_in_it(tiny_model, as_bridge):
    model = tiny_model("llama")
    settings = {"roles": ["induction", "previous-token"], "rows": 12, "twins": 3}
    own = certify(attach(model), None, PROBE, **settings)
    bridged = certify(attach(as_bridge(model)), None, PROBE, **settings)
    for one, other in zip(own, bridged, strict=True):
        assert (one.head, one.role, one.offset) == (other.head, other.role, other.offset)
        assert other.score == pytest.approx(one.score, abs=1e-4)
        assert other.random_score == pytest.approx(one.random_score, abs=1e-4)
        assert other.p == pytest.approx(one.p, rel=0.05, abs=1e-6)


def test_what_is_found_must_hold_in_every_family(wired_model, monkeypatch):
    """A head that does its job in one kind of prompts and not in the other is not reported."""
    backend = attach(wired_model)
    family = torch.arange(24) % 2
    real = RepeatedTokens.batch

    def halved(self, context, split, rows, seed):
        batch = real(self, context, split, rows, seed)
        # In prompts of family 1 the targets are where no head looks: two before the query.
        lost = shifted_target(batch.targets["induction"], batch.mask, 2)
        target = batch.targets["induction"].where(family[:, None, None] == 0, lost)
        return replace(batch, targets={**batch.targets, "induction": target}, family=family)

    probe = RepeatedTokens(length=24, segment=(8, 12), prefix=(0, 3))
    whole = certify(backend, None, probe, ["induction"], rows=24, offsets={})
    monkeypatch.setattr(RepeatedTokens, "batch", halved)
    half = certify(backend, None, probe, ["induction"], rows=24, offsets={})
    best = max(whole, key=lambda f: f.score)
    assert best.reported
    assert best.family_score == pytest.approx(best.score)
    other = next(f for f in half if f.head == best.head)
    assert other.score > 0.4
    assert other.p <= 0.05
    assert other.family_score < 0.1
    assert not other.reported
