import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture import attach
from circuitkeep.capture.models import build_embedded
from circuitkeep.tasks import transcoding_rows
from circuitkeep.tasks.transcoding_data import ActivationData
from circuitkeep.tasks.transcoding_rows import token_rows
from circuitkeep.transcoders.harvest import Harvest, run


def data(folder, seed=0, **changes):
    backend = attach(build_embedded(seed).requires_grad_(False))
    given = {"rows": 12, "held_out_rows": 4, "length": 16, "batch_size": 32, **changes}
    return ActivationData(backend, None, folder, **given)


def prepared(folder, **changes):
    module = data(folder, **changes)
    module.prepare_data()
    module.setup()
    return module


@pytest.mark.parametrize("shards", [False, True])
def test_batches_are_the_models_activations(tmp_path, shards):
    module = prepared(tmp_path, shards=shards, rows_per_shard=5, dtype="float32", skip_first=2)
    rows = module.train
    inputs, outputs = run(module.backend, rows.tokens)
    kept = rows.mask.clone()
    kept[:, :2] = False
    expected = {tuple(x.flatten().tolist()) for x in inputs[:, kept].transpose(0, 1)[:, :, :3]}
    loader = module.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == int(kept.sum()) // 32
    assert all(isinstance(batch, Harvest) and len(batch.inputs) == 32 for batch in batches)
    found = {tuple(x.flatten().tolist()) for batch in batches for x in batch.inputs[:, :, :3]}
    assert found <= expected
    assert len(found) == 32 * len(batches)
    everything = module.source.take(torch.arange(len(module.source)))
    assert_close(everything.outputs, outputs[:, kept].transpose(0, 1))


def test_memory_and_disk_hold_the_same_and_know_the_same_scales(tmp_path):
    settings = {"rows_per_shard": 12, "text_seed": 3}
    one = prepared(tmp_path / "memory", **settings)
    two = prepared(tmp_path / "disk", shards=True, **settings)
    for ours, other in zip(one.train_dataloader(), two.train_dataloader(), strict=True):
        assert torch.equal(ours.inputs, other.inputs)
        assert torch.equal(ours.outputs, other.outputs)
    for normalized in (False, True):
        for name, value in vars(one.scales(normalized)).items():
            assert_close(value, vars(two.scales(normalized))[name])
    read = one.source.inputs.float()
    read = read / read.square().mean(-1, keepdim=True).sqrt()
    assert_close(one.scales(True).input_mean, read.mean(0), atol=1e-4, rtol=1e-3)


def test_held_out_tokens_are_others(tmp_path):
    module = prepared(tmp_path)
    train = {tuple(row) for row in module.train.tokens.tolist()}
    held_out = {tuple(row) for row in module.held_out.tokens.tolist()}
    assert (len(train), len(held_out)) == (12, 4)
    assert not train & held_out
    (batch, *_) = module.val_dataloader()
    assert_close(batch.inputs, module.held_out_source.inputs[:32])


def test_tokens_are_drawn_once(tmp_path, monkeypatch):
    one = prepared(tmp_path).train.tokens
    monkeypatch.setattr(transcoding_rows, "own_rows", lambda *_: 1 / 0)
    assert torch.equal(prepared(tmp_path).train.tokens, one)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"rows": 13}, {"text_seed": 1}])
def test_tokens_of_something_else_are_refused(tmp_path, changes):
    prepared(tmp_path)
    with pytest.raises(ValueError, match="holds tokens of another model, or drawn by other"):
        data(tmp_path, **changes).prepare_data()


def test_shards_of_something_else_are_refused(tmp_path):
    prepared(tmp_path, shards=True)
    with pytest.raises(ValueError, match="holds activations of another model, or of other data"):
        data(tmp_path, shards=True, dtype="bfloat16").prepare_data()


def test_a_text_is_read_and_its_end_held_out(tmp_path, tiny_model, word_tokenizer):
    words = [f"w{number % 32}" for number in range(100)]
    text = tmp_path / "text.txt"
    text.write_text(" ".join(words))
    backend = attach(tiny_model("llama"))
    module = ActivationData(
        backend, word_tokenizer, tmp_path, str(text), None, 2, length=11, batch_size=8
    )
    module.prepare_data()
    assert module.train.tokens[:, 0].tolist() == [32] * 9
    assert module.train.tokens[0, 1:].tolist() == list(range(10))
    # 100 words and EOS: the last row has one real token after BOS.
    assert module.held_out.mask.sum(1).tolist() == [11, 2]
    with pytest.raises(ValueError, match="has 11 rows of 11 tokens, fewer than 14"):
        token_rows(backend, word_tokenizer, str(text), 14, 11, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int8"}, r"data.dtype='int8': choose one of float32"),
        ({"length": 33}, r"data.length=33 is longer than the model's context of 32"),
        ({"rows": 0}, r"data.rows=0 must be at least 1"),
        ({"skip_first": 16}, r"data.length - skip_first=0 must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        data(tmp_path, **changes)


def test_too_few_tokens_and_no_number_of_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="tokens do not fill a batch of 4096"):
        prepared(tmp_path / "few", batch_size=4096)
    with pytest.raises(ValueError, match="how many rows shall the model draw"):
        data(tmp_path / "none", rows=None).prepare_data()
