import pytest
import torch
from torch.testing import assert_close

from circuitkeep.transcoders.harvest import Harvest, harvest, run


def by_hooks(model, tokens):
    """What the MLPs of a Llama read and write, by hooks of torch alone."""
    reads, writes, handles = [], [], []
    for layer in model.model.layers:
        norm = layer.post_attention_layernorm
        handles.append(norm.register_forward_pre_hook(lambda _, args: reads.append(args[0])))
        handles.append(layer.mlp.register_forward_hook(lambda _, args, out: writes.append(out)))
    with torch.no_grad():
        model(tokens)
    for handle in handles:
        handle.remove()
    return torch.stack(reads), torch.stack(writes)


def test_one_pass_sees_what_hooks_see(backend, tokens):
    inputs, outputs = run(backend, tokens)
    expected = by_hooks(backend.model, tokens)
    assert_close(inputs, expected[0])
    assert_close(outputs, expected[1])
    assert not inputs.requires_grad


def test_real_tokens_in_order_some_rows_at_a_time(backend, tokens):
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[1, 5:] = False
    parts = list(harvest(backend, tokens, mask, 2))
    assert [len(part.inputs) for part in parts] == [12 + 5, 12]
    found = Harvest(*(torch.cat(values) for values in zip(*parts, strict=True)))
    for got, whole in zip(found, by_hooks(backend.model, tokens), strict=True):
        expected = [whole[:, row, pos] for row, pos in mask.nonzero().tolist()]
        assert_close(got, torch.stack(expected))


def test_kept_in_half_precision_or_refused(backend, tokens, monkeypatch):
    mask = torch.ones_like(tokens, dtype=torch.bool)
    (part,) = harvest(backend, tokens, mask, 8, torch.bfloat16)
    assert part.inputs.dtype == torch.bfloat16
    scale = backend.model.model.embed_tokens.weight.data
    monkeypatch.setattr(backend.model.model.embed_tokens.weight, "data", scale * 1e6)
    with pytest.raises(ValueError, match=r"not finite as float16; .* \(data.dtype=bfloat16\)"):
        list(harvest(backend, tokens, mask, 8, torch.float16))
