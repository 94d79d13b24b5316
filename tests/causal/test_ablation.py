import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture import attach
from circuitkeep.causal import ablation_effect, mean_outputs
from circuitkeep.causal.ablation import answer_log_probs, answer_loss, mean_by_row
from circuitkeep.circuits import Head
from circuitkeep.probes import ProbeBatch
from circuitkeep.probing import probe_rows


@pytest.fixture
def uneven():
    """Rows of different lengths, one of them without an answer."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([9, 4, 7])
    mask = torch.arange(9) < lengths[:, None]
    tokens = torch.randint(0, 32, (3, 9), generator=generator).where(mask, 34)
    return ProbeBatch(
        tokens,
        mask,
        {},
        answer_row=torch.tensor([0, 0, 2]),
        answer_position=torch.tensor([3, 7, 5]),
        answer=torch.tensor([5, 6, 7]),
    )


def outputs_of(model, row, length):
    """What each head puts out, by a hook on W_O and on one unpadded row."""
    found = []
    handles = [
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda module, args: found.append(args[0][0].unflatten(-1, (4, 8)))
        )
        for layer in model.model.layers
    ]
    model(row[None, :length])
    for handle in handles:
        handle.remove()
    return found


def test_means_by_a_naive_loop(tiny_model, uneven):
    model = tiny_model("llama")
    heads = (Head(1, 3), Head(0, 0))
    means = mean_outputs(attach(model), heads, uneven)
    assert list(means) == list(heads)
    for head in heads:
        total, count = torch.zeros(8), 0
        for row in range(3):
            length = int(uneven.mask[row].sum())
            found = outputs_of(model, uneven.tokens[row], length)[head.layer]
            for position in range(length):
                total += found[position, head.index]
                count += 1
        assert_close(means[head].float(), total / count, atol=1e-5, rtol=1e-5)
        assert not means[head].requires_grad


def test_loss_by_a_naive_loop(tiny_model, uneven):
    model = tiny_model("llama")
    loss = answer_loss(attach(model), uneven)
    nats = []
    for row, position, answer in zip(
        uneven.answer_row, uneven.answer_position, uneven.answer, strict=True
    ):
        logits = model(uneven.tokens[row, : position + 1][None]).logits[0, -1]
        nats.append(-logits.log_softmax(-1)[answer].item())
    assert loss[0].item() == pytest.approx((nats[0] + nats[1]) / 2, rel=1e-5)
    assert loss[1].isnan(), "a row without an answer"
    assert loss[2].item() == pytest.approx(nats[2], rel=1e-5)


def test_log_probs(tiny_model, uneven):
    model = tiny_model("llama", dtype=torch.bfloat16)
    log_probs, batch = answer_log_probs(attach(model), uneven)
    assert log_probs.dtype == torch.float32
    assert_close(log_probs.exp().sum(-1), torch.ones(3))
    assert torch.equal(batch.answer, uneven.answer)
    assert_close(mean_by_row(torch.tensor([1.0, 3.0, 5.0]), batch)[[0, 2]], torch.tensor([2.0, 5]))


def test_chunks_make_no_difference(tiny_model, uneven, monkeypatch):
    backend = attach(tiny_model("llama"))
    heads = (Head(0, 1), Head(1, 2))
    whole = mean_outputs(backend, heads, uneven), ablation_effect(backend, heads, uneven)
    monkeypatch.setattr("circuitkeep.causal.answers.CHUNK", 1)
    parts = mean_outputs(backend, heads, uneven), ablation_effect(backend, heads, uneven)
    for head in heads:
        assert_close(whole[0][head], parts[0][head], atol=1e-6, rtol=1e-6)
    assert_close(whole[1], parts[1], atol=1e-5, rtol=1e-5, equal_nan=True)


def test_effect_by_hand(tiny_model, uneven):
    """With the means put in place by a hook on W_O."""
    model = tiny_model("llama")
    backend = attach(model)
    head = Head(1, 2)
    effect = ablation_effect(backend, (head,), uneven)
    mean = mean_outputs(backend, (head,), uneven)[head].float()
    clean = answer_loss(backend, uneven)

    def edit(module, args):
        z = args[0].unflatten(-1, (4, 8)).clone()
        z[:, :, head.index] = mean
        return (z.flatten(-2),)

    model.model.layers[1].self_attn.o_proj.register_forward_pre_hook(edit)
    edited = answer_loss(backend, uneven)
    assert_close(effect, edited - clean, atol=1e-5, rtol=1e-5, equal_nan=True)
    assert effect[0].abs() > 1e-3


def test_ground_truth(wired_model, wired_circuit):
    backend = attach(wired_model)
    batch = probe_rows(wired_circuit, backend, None, "held_out", 40, 0)
    assert answer_loss(backend, batch).max() < 0.05
    for head in wired_circuit.heads:
        assert (ablation_effect(backend, (head,), batch) > 1).all(), head
    assert (ablation_effect(backend, wired_circuit.heads, batch) > 1).all()
    decoys = tuple(
        head
        for layer in range(2)
        for index in range(4)
        if (head := Head(layer, index)) not in wired_circuit.heads
    )
    assert ablation_effect(backend, decoys, batch).abs().max() < 1e-4


def test_measuring_leaves_no_trace(wired_model, wired_circuit):
    backend = attach(wired_model.train())
    batch = probe_rows(wired_circuit, backend, None, "held_out", 4, 0)
    state = torch.get_rng_state()
    tokens = batch.tokens
    before = wired_model(tokens).logits
    ablation_effect(backend, wired_circuit.heads, batch)
    assert torch.equal(wired_model(tokens).logits, before)
    assert wired_model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in wired_model.parameters())
