import runpy
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture.interpolation import interpolate
from circuitkeep.capture.models import load_model, save_model

SCRIPT = Path(__file__).parents[2] / "scripts/wise_ft.py"


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_weights_lie_between(alpha, tiny_model):
    base, tuned = tiny_model("llama", 0), tiny_model("llama", 1)
    before, after = weights(base), weights(tuned)
    between = weights(interpolate(base, tuned, alpha))
    assert_close(between, (1 - alpha) * before + alpha * after)
    assert torch.equal(weights(base), before)
    if alpha in (0.0, 1.0):
        assert torch.equal(between, after if alpha else before)


def test_tied_weights_are_moved_once(tiny_model):
    base, tuned = tiny_model("gpt2", 0), tiny_model("gpt2", 1)
    expected = (base.lm_head.weight + tuned.lm_head.weight).detach() / 2
    between = interpolate(base, tuned, 0.5)
    assert_close(between.lm_head.weight, expected)
    assert between.lm_head.weight is between.transformer.wte.weight


def test_mistakes_are_refused(tiny_model):
    with pytest.raises(ValueError, match=r"alpha must be .* got 1.5"):
        interpolate(tiny_model("llama"), tiny_model("llama"), 1.5)
    with pytest.raises(ValueError, match="GPT2LMHeadModel and LlamaForCausalLM are not one"):
        interpolate(tiny_model("gpt2"), tiny_model("llama"), 0.5)
    with pytest.raises(ValueError, match=r"not one architecture: model.layers.0.mlp"):
        interpolate(tiny_model("llama"), tiny_model("llama", intermediate_size=40), 0.5)


def test_the_script(tiny_model, word_tokenizer, tmp_path, capsys):
    for seed in (0, 1):
        save_model(tiny_model("llama", seed), tmp_path / str(seed), word_tokenizer)
    save_model(tiny_model("llama"), tmp_path / "without tokenizer")
    main = runpy.run_path(str(SCRIPT))["main"]
    one, other = str(tmp_path / "0"), str(tmp_path / "1")
    main([one, other, "0.25,0.5", str(tmp_path / "out")])
    assert capsys.readouterr().out.count("alpha=") == 2
    halves = (weights(load_model(path)) for path in (one, other))
    assert_close(weights(load_model(tmp_path / "out/0.5")), sum(halves) / 2)
    assert (tmp_path / "out/0.25/tokenizer.json").is_file()
    for arguments, said in (
        ([one, str(tmp_path / "without tokenizer"), "0.5"], "different tokenizers"),
        ([one, other, "2"], "alpha must be"),
        ([one, str(tmp_path / "nowhere"), "0.5"], "no model directory"),
    ):
        with pytest.raises(SystemExit, match=said):
            main([*arguments, str(tmp_path / "wrong")])
    assert not (tmp_path / "wrong").exists()
