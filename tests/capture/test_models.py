"""Loading, saving and telling apart."""

import shutil

import pytest
import torch
from torch import nn

from circuitkeep.capture import attach
from circuitkeep.capture.fingerprints import fingerprint_model, fingerprint_tokenizer
from circuitkeep.capture.models import load_model, load_tokenizer, save_model
from circuitkeep.capture.sampling import sample_tokens, special_tokens


@pytest.fixture(scope="module")
def folder(tiny_model, word_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "llama"
    save_model(tiny_model("llama"), path, word_tokenizer)
    return path


def test_round_trip(folder, tiny_model, word_tokenizer):
    model, loaded = tiny_model("llama"), load_model(folder)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())
    assert load_model(folder, "bfloat16").dtype == torch.bfloat16
    assert load_model(str(folder), attn_implementation="eager").config._attn_implementation == (
        "eager"
    )
    assert load_tokenizer(folder).get_vocab() == word_tokenizer.get_vocab()


def test_saving_is_whole_or_nothing(tmp_path, tiny_model):
    path = tmp_path / "run" / "model"
    save_model(tiny_model("llama"), path)
    before = fingerprint_model(load_model(path))

    class Broken:
        def save_pretrained(self, folder):
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        save_model(tiny_model("llama", seed=1), path, tokenizer=Broken())
    assert [p.name for p in path.parent.iterdir()] == ["model"]
    assert fingerprint_model(load_model(path)) == before
    save_model(tiny_model("llama", seed=1), path)
    assert fingerprint_model(load_model(path)) != before
    assert [p.name for p in path.parent.iterdir()] == ["model"]


def test_nothing_there(tmp_path):
    missing = tmp_path / "nothing"
    for path in (missing, str(missing), f"./{missing.name}"):
        for load in (load_model, load_tokenizer):
            with pytest.raises(FileNotFoundError, match="there is no model directory at"):
                load(path)


def test_a_file_is_no_directory(tmp_path):
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ValueError, match=r"model.safetensors is a file; name the directory"):
        load_model(file)


def test_other_errors_of_loading(folder, tmp_path):
    with pytest.raises(ValueError, match=r"model.dtype='fp8': choose one of float32"):
        load_model(folder, dtype="fp8")
    with pytest.raises(ValueError, match="cannot load a model from"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match=r"has no tokenizer that can be loaded.*save_pretrained"):
        load_tokenizer(tmp_path)
    with pytest.raises(ValueError, match="cannot load a model from 'no-such-model'"):
        load_model("no-such-model")
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ValueError, match="cannot load a model from"):
        load_model(broken)


def test_weights_that_lack_a_part(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    partial = tmp_path / "partial"
    shutil.copytree(folder, partial)
    weights = load_file(partial / "model.safetensors")
    del weights["model.layers.1.self_attn.q_proj.weight"]
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack model\.layers\.1\.self_attn\.q_proj\.weight"):
        load_model(partial)


def test_models_of_another_kind(tmp_path):
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

    small = {"vocab_size": 36, "num_hidden_layers": 1}
    bert = BertForMaskedLM(BertConfig(hidden_size=12, intermediate_size=12, **small))
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=36, d_model=8, d_ff=8, num_layers=1))
    for model in (bert, t5):
        path = tmp_path / type(model).__name__
        model.save_pretrained(path)
        with pytest.raises(
            ValueError, match=f"is not a causal language model: .*{type(model).__name__}"
        ):
            load_model(path)


def test_fingerprint_of_a_model(folder, tiny_model):
    model = tiny_model("llama")
    print_ = fingerprint_model(model)
    assert fingerprint_model(load_model(folder)) == print_, "saved and loaded"
    assert fingerprint_model(load_model(folder, attn_implementation="eager")) == print_
    assert fingerprint_model(nn.ModuleDict({"model": model})) == print_
    assert fingerprint_model(tiny_model("llama", rms_norm_eps=1e-5)) != print_, "its config counts"
    assert fingerprint_model(tiny_model("llama", dtype=torch.bfloat16)) != print_
    weight = model.model.layers[1].self_attn.o_proj.weight
    with torch.no_grad():
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(9.0))
    assert fingerprint_model(model) != print_, "one weight by one bit"


def test_fingerprint_with_a_scalar_weight(tiny_model):
    model = tiny_model("llama")
    before = fingerprint_model(model)
    model.register_buffer("scale", torch.tensor(2.0))
    assert fingerprint_model(model) != before


def test_fingerprint_of_a_bridge(tiny_model, as_bridge):
    one, same, other = (as_bridge(tiny_model("llama", seed=seed)) for seed in (0, 0, 1))
    assert fingerprint_model(one) == fingerprint_model(same) != fingerprint_model(other)


def test_fingerprint_of_a_tokenizer(folder, word_tokenizer):
    assert fingerprint_tokenizer(None) == "none"
    other = load_tokenizer(folder)
    assert fingerprint_tokenizer(other) == fingerprint_tokenizer(word_tokenizer)
    other.add_tokens(["more"])
    assert fingerprint_tokenizer(other) != fingerprint_tokenizer(word_tokenizer)


@pytest.mark.parametrize("bridge", [False, True])
def test_samples(tiny_model, as_bridge, bridge):
    model = tiny_model("gpt2", attn_pdrop=0.5)
    with torch.no_grad():  # so that some sequences end early
        model.lm_head.weight[33] *= 3
    if bridge:
        model = as_bridge(model)
    model.train()
    state = torch.get_rng_state()
    backend = attach(model)
    one, same, other = (sample_tokens(backend, 40, 10, seed, 32) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert one.shape == (40, 10)
    assert (one[:, 0] == 32).all()
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    ended = (one[:, :-1] == 33).cummax(1).values
    assert 0 < ended.sum() < ended.numel()
    assert (one[:, 1:][ended] == 33).all(), "what ends stays ended"
    assert not sample_tokens(backend, 2, 4, 0, 32).requires_grad


def test_samples_follow_the_model(tiny_model):
    backend = attach(tiny_model("llama"))
    drawn = sample_tokens(backend, 4000, 2, 0, 32)[:, 1]
    probabilities = backend.forward(torch.tensor([[32]]))[0, 0].softmax(-1)
    frequencies = torch.bincount(drawn, minlength=36) / 4000
    assert (frequencies - probabilities).abs().max() < 0.03


def test_samples_that_cannot_be_drawn(tiny_model):
    backend = attach(tiny_model("llama"))
    with pytest.raises(ValueError, match="without a BOS token"):
        sample_tokens(backend, 1, 4, 0, None)
    with pytest.raises(ValueError, match=r"samples of 25 tokens .* context of 24"):
        sample_tokens(backend, 1, 25, 0, 32)


def test_special_tokens(tiny_model, word_tokenizer):
    model = tiny_model("llama", bos_token_id=5, eos_token_id=[6, 7], pad_token_id=None)
    assert special_tokens(model, None) == (5, {5, 6, 7})
    assert special_tokens(model, word_tokenizer) == (32, {5, 6, 7, 32, 33, 34, 35})
    # GPT-2's defaults name a token that a small vocabulary does not have.
    model = tiny_model("gpt2", bos_token_id=50256, eos_token_id=50256, pad_token_id=None)
    assert special_tokens(model, None) == (None, frozenset())
