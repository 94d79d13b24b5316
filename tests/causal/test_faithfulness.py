import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture import attach
from circuitkeep.causal import Ablation, Knockouts
from circuitkeep.causal.faithfulness import SIZES
from circuitkeep.circuits import Head
from circuitkeep.probing import probe_rows

from .conftest import HEADS, hooked, metric_by_hand, outputs_by_hand


@pytest.fixture
def knockouts(tiny_model, pairs):
    return Knockouts(attach(tiny_model("gpt2")), pairs, Ablation("mean"))


def test_by_hand(knockouts, tiny_model, pairs):
    model = tiny_model("gpt2")
    zs = outputs_by_hand(model, pairs.tokens)
    means = [z[pairs.mask].mean(0) for z in zs]

    def with_only(kept):
        def edit(layer, z):
            for index in range(4):
                if Head(layer, index) not in kept:
                    z[:, :, index] = means[layer][index]

        with hooked(model, edit):
            return metric_by_hand(model, pairs.tokens, pairs, "logit_difference").nanmean()

    kept = (Head(0, 1), Head(1, 2), Head(1, 3))
    whole, none, some = with_only(HEADS), with_only(()), with_only(kept)
    expected = ((some - none) / (whole - none)).item()
    assert knockouts.faithfulness(kept) == pytest.approx(expected, abs=1e-3)
    assert knockouts.faithfulness(HEADS) == 1
    assert knockouts.faithfulness(()) == 0
    assert_close(knockouts.scores(kept).nanmean(), some, atol=1e-5, rtol=1e-5)


def test_completeness(knockouts):
    circuit = (Head(0, 1), Head(1, 2), Head(1, 3))
    removals = knockouts.completeness(circuit, draws=6, seed=1)
    assert len({removal.removed for removal in removals}) > 2
    for removal in removals:
        kept = [head for head in circuit if head not in removal.removed]
        rest = [head for head in HEADS if head not in removal.removed]
        assert removal.circuit == pytest.approx(knockouts.faithfulness(kept))
        assert removal.model == pytest.approx(knockouts.faithfulness(rest))
        assert removal.incompleteness == abs(removal.circuit - removal.model)
    assert knockouts.completeness(circuit, draws=6, seed=1) == removals
    for removal in knockouts.completeness(HEADS, draws=2):
        assert removal.incompleteness == 0, "the whole model is complete"


def test_minimality(knockouts):
    circuit = (Head(1, 3), Head(0, 1), Head(1, 2))
    found = knockouts.minimality(circuit, {Head(1, 2): [Head(1, 3), Head(1, 2)]})
    assert list(found) == sorted(circuit)
    whole = knockouts.faithfulness(circuit)
    assert found[Head(0, 1)] == pytest.approx(
        whole - knockouts.faithfulness(circuit[:1] + circuit[2:])
    )
    alone = knockouts.faithfulness([Head(0, 1)])
    pair = knockouts.faithfulness([Head(0, 1), Head(1, 2)])
    assert found[Head(1, 2)] == pytest.approx(pair - alone)


def test_curve(knockouts):
    ranking = HEADS[::-1]
    told = []
    curve = knockouts.curve(ranking, progress=lambda *now: told.append(now))
    assert told[-1] == (10, 10)
    assert curve.sizes == SIZES
    assert curve.heads == (0, 0, 0, 0, 0, 0, 0, 1, 4, 8)
    assert curve.faithfulness[:7] == (0,) * 7
    assert curve.faithfulness[-1] == 1
    for place, count in ((7, 1), (8, 4)):
        expected = knockouts.faithfulness(ranking[:count])
        assert curve.faithfulness[place] == pytest.approx(expected)
    one, four = curve.faithfulness[7:9]
    under = 0.1 * one / 2 + 0.3 * (one + four) / 2 + 0.5 * (four + 1) / 2
    assert curve.cpr == pytest.approx(under)
    with pytest.raises(ValueError, match=r"each of the model's 8 heads once.* 7 in 8 places"):
        knockouts.curve((*HEADS[:7], HEADS[0]))


def test_ground_truth(wired_model, wired_circuit):
    backend = attach(wired_model)
    batch = probe_rows(wired_circuit, backend, None, "held_out", 16, 0)
    knockouts = Knockouts(backend, batch, Ablation("mean"), "log_prob_nats")
    heads = wired_circuit.heads
    assert knockouts.faithfulness(heads) == pytest.approx(1, abs=1e-4)
    assert all(value > 0.5 for value in knockouts.minimality(heads).values())
    rest = [head for head in HEADS if head not in heads]
    curve = knockouts.curve([*heads, *rest])
    assert curve.faithfulness[8] == pytest.approx(1, abs=1e-4)
    assert knockouts.curve([*rest, *heads]).cpr < curve.cpr
    assert all(r.incompleteness < 1e-3 for r in knockouts.completeness(heads, 4))


def test_what_has_no_faithfulness(tiny_model, pairs, knockouts):
    with pytest.raises(ValueError, match="head L4H0 is outside the model"):
        knockouts.faithfulness([Head(4, 0)])
    model = tiny_model("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    with pytest.raises(ValueError, match="with everything ablated as without"):
        Knockouts(attach(model), pairs, Ablation("mean"))
