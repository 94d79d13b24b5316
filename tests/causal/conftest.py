"""Pairs of prompts, and interventions done by hand: by plain hooks on the output projections."""

from contextlib import contextmanager

import pytest
import torch

from circuitkeep.circuits import Head

HEADS = tuple(Head(layer, index) for layer in range(2) for index in range(4))


def out_projections(model):
    ends = ("attn.c_proj", "self_attn.o_proj", "attention.dense")
    return [module for name, module in model.named_modules() if name.endswith(ends)]


@contextmanager
def hooked(model, edit):
    """``edit(layer, z)`` sees every layer's z, ``batch pos head d``, and may change it in place."""

    def hook(layer):
        def run(module, args):
            z = args[0].unflatten(-1, (4, 8)).clone()
            edit(layer, z)
            return (z.flatten(-2), *args[1:])

        return run

    handles = [
        module.register_forward_pre_hook(hook(layer))
        for layer, module in enumerate(out_projections(model))
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def outputs_by_hand(model, tokens):
    """Layer by layer, z of all heads."""
    found = []
    with torch.no_grad(), hooked(model, lambda layer, z: found.append(z)):
        model(tokens)
    return found


def metric_by_hand(model, tokens, batch, metric):
    """Of the answers of `batch`, on other tokens perhaps; a loop over answers."""
    with torch.no_grad():
        logits = model(tokens).logits.double()
    values = [[] for _ in range(len(batch))]
    for i, (row, position) in enumerate(
        zip(batch.answer_row.tolist(), batch.answer_position.tolist(), strict=True)
    ):
        here = logits[row, position]
        value = here[batch.answer[i]]
        value = value - (here.logsumexp(0) if metric != "logit_difference" else 0)
        if metric == "logit_difference":
            value = value - here[batch.distractor[i]]
        values[row].append(value)
    none = torch.tensor(torch.nan)
    return torch.stack([torch.stack(v).mean() if v else none for v in values]).float()


@pytest.fixture
def pairs():
    """Six rows of two lengths; one without an answer, one with two; all differ in two places."""
    from circuitkeep.probes import ProbeBatch

    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([9, 7, 9, 7, 9, 9])
    mask = torch.arange(9) < lengths[:, None]
    tokens = torch.randint(0, 32, (6, 9), generator=generator).where(mask, 34)
    other = tokens.clone()
    other[:, [1, 3]] = (other[:, [1, 3]] + 5) % 32
    answers = {
        "answer_row": torch.tensor([0, 0, 2, 3, 4, 5]),
        "answer_position": torch.tensor([8, 5, 8, 6, 8, 7]),
        "answer": torch.tensor([5, 6, 7, 8, 9, 10]),
        "distractor": torch.tensor([15, 16, 17, 18, 19, 20]),
    }
    return ProbeBatch(tokens, mask, {}, **answers, corrupted=ProbeBatch(other, mask, {}, **answers))
