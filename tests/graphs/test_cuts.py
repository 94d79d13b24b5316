"""What cutting an edge of a head does, predicted and measured."""

import pytest
import torch

from circuitkeep.circuits import Head
from circuitkeep.graphs.cuts import Cut, measured_logits, predicted_change
from circuitkeep.graphs.frozen import freeze
from circuitkeep.graphs.writes import logit_readout


def change(held, frozen, token, cut, kept="nothing"):
    """Of a logit less the mean of all, in the true model."""
    after = measured_logits(held.backend, frozen, [cut], kept)[-1]
    before = held.logits[-1]
    return (after[token] - after.mean() - before[token] + before.mean()).item()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("renormalized", [True, False])
def test_in_wired_models_the_prediction_comes_true(oracles, seed, renormalized):
    found = oracles.wired("induction", seed)
    (finder,) = found.heads["induction"]
    tokens = torch.tensor([0, 7, 12, 9, 7, 3, 20, 7])
    held = oracles.Held(found.model, tokens)
    frozen = freeze(held.backend, tokens)
    # It attends behind both earlier ones, to 12 and 3, mostly to one of them.
    key, other_key = held.patterns[finder.layer, finder.index, 7].topk(2).indices.tolist()
    assert {key, other_key} == {2, 5}
    token, other_token = int(tokens[key]), int(tokens[other_key])
    readout = logit_readout(frozen, token)
    cut = Cut(finder, 7, (key,), renormalized)
    predicted = predicted_change(held.backend, frozen, readout, cut)
    # Norms are linear but for a millionth; the random heads of later layers attend a little
    # differently once the finder writes another token.
    for kept, tolerance in (("nothing", 0.1), ("patterns", 1e-3), ("patterns and MLPs", 1e-3)):
        assert change(held, frozen, token, cut, kept) == pytest.approx(predicted, rel=tolerance)
    assert predicted < -2
    # The attention goes on to the other one, if it is not lost.
    other = predicted_change(held.backend, frozen, logit_readout(frozen, other_token), cut)
    assert other > 2 if renormalized else abs(other) < 1


@pytest.mark.parametrize("kind", ["gpt2", "llama", "neox"])
@pytest.mark.parametrize("renormalized", [True, False])
def test_with_linear_norms_held_patterns_and_mlps_it_is_exact(oracles, kind, renormalized):
    model = oracles.random_model(kind, 0, 3)
    inner = model.base_model
    for block in oracles.blocks(model):
        name = "ln_1" if kind == "gpt2" else "input_layernorm"
        setattr(block, name, torch.nn.Identity())
    last = next(n for n in ("ln_f", "norm", "final_layer_norm") if hasattr(inner, n))
    setattr(inner, last, torch.nn.Identity())
    from circuitkeep.capture import attach

    backend, tokens = attach(model), oracles.prompt(0)
    frozen = freeze(backend, tokens)
    readout = logit_readout(frozen, 4)
    for head, query, keys in (
        (Head(0, 1), 2, (1,)),
        (Head(1, 3), 4, (0, 3)),
        (Head(2, 0), 4, (4,)),
    ):
        cut = Cut(head, query, keys, renormalized)
        after = measured_logits(backend, frozen, [cut], "patterns and MLPs")[-1]
        before = frozen.logits[-1]
        measured = (after[4] - after.mean() - before[4] + before.mean()).item()
        predicted = predicted_change(backend, frozen, readout, cut)
        assert predicted == pytest.approx(measured, abs=1e-9)
        assert abs(predicted) > 1e-4
    assert predicted_change(backend, frozen, readout, Cut(Head(2, 0), 3, (1,))) == 0


def test_the_cut_pattern():
    pattern = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5]])
    cut = Cut(Head(0, 0), 2, (2,)).pattern(pattern)
    torch.testing.assert_close(cut, torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0.4, 0.6, 0]]))
    lost = Cut(Head(0, 0), 2, (0, 2), renormalized=False).pattern(pattern)
    torch.testing.assert_close(lost[2], torch.tensor([0, 0.3, 0]))
    with pytest.raises(ValueError, match="renormalized=False"):
        Cut(Head(0, 0), 0, (0,)).pattern(pattern)


def test_what_cannot_be_cut_is_refused(oracles):
    held = oracles.Held(oracles.attention_only("gpt2", 0), oracles.prompt(0))
    frozen = freeze(held.backend, held.tokens)
    cuts = [Cut(Head(0, 0), 2, (1,)), Cut(Head(0, 0), 3, (1,))]
    with pytest.raises(ValueError, match="one cut, of several keys"):
        measured_logits(held.backend, frozen, cuts)
