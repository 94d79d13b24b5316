"""Ablating heads one by one: `ablate_each` against a whole forward pass per head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.bench.gpt2 import Subject
from circuitkeep.bench.race import Contender, Race
from circuitkeep.causal.ablation import MEAN, ablate_each, replacements
from circuitkeep.causal.answers import score_asked
from circuitkeep.circuits import Head
from circuitkeep.probes import ProbeBatch

METRIC = "log_prob_nats"


def ablating_race(subject: Subject, batch: ProbeBatch, heads: Sequence[Head]) -> Race:
    """Mean-ablate each of `heads` alone, on `batch`, which is on the CPU."""
    prompts, length = batch.tokens.shape
    return Race(
        "ablating heads",
        {
            "heads": len(heads),
            "prompts": prompts,
            "tokens_per_prompt": length,
            "answers": len(batch.answer),
        },
        _contenders(subject, batch, heads),
        _contenders(subject, batch, heads[:1]),
        "the cost of an ablation (nats per answer token)",
        tolerance=1e-4,
    )


def _contenders(
    subject: Subject, batch: ProbeBatch, heads: Sequence[Head]
) -> tuple[Contender, ...]:
    model, bridge, backend = subject.model, subject.bridge, subject.backend
    here = batch.to(backend.device)
    # Handed to the others for nothing; ours takes its own.
    means = replacements(backend, heads, batch, MEAN)

    def score(logits: Float[Tensor, "batch pos vocab"]) -> Float[Tensor, " batch"]:
        asked = logits[here.answer_row, here.answer_position]
        return score_asked(asked[None], here, METRIC)[0]

    def ours() -> Tensor:
        return ablate_each(backend, heads, batch, MEAN, METRIC)

    def by_hand() -> Tensor:
        clean = score(model(here.tokens, use_cache=False).logits)
        costs = []
        for head in heads:
            span = slice(head.index * backend.d_head, (head.index + 1) * backend.d_head)

            def edit(module: Any, args: Any, span: slice = span, head: Head = head) -> Any:
                z = args[0].clone()
                z[..., span] = means[head]
                return (z, *args[1:])

            project = model.get_submodule(f"transformer.h.{head.layer}.attn.c_proj")
            handle = project.register_forward_pre_hook(edit)
            try:
                logits = model(here.tokens, use_cache=False).logits
            finally:
                handle.remove()
            costs.append(clean - score(logits))
        return torch.stack(costs, dim=1)

    def by_hooks() -> Tensor:
        clean = score(bridge(here.tokens))
        costs = []
        for head in heads:

            def edit(z: Tensor, hook: Any, head: Head = head) -> Tensor:
                z = z.clone()
                z[:, :, head.index] = means[head]
                return z

            name = f"blocks.{head.layer}.attn.hook_z"
            logits = bridge.run_with_hooks(here.tokens, fwd_hooks=[(name, edit)])
            costs.append(clean - score(logits))
        return torch.stack(costs, dim=1)

    return (
        Contender(
            "ours: ablate_each",
            "passes that start at the ablated layer, with the prompts once per head, and unembed "
            "the answers only; the clean pass and the means included",
            ours,
        ),
        Contender(
            "transformers hook",
            "by hand: a forward pre-hook on c_proj and a whole forward pass per head",
            by_hand,
            claim=2.0,
        ),
        Contender(
            "TransformerLens hook",
            "bridge.run_with_hooks with an edit of hook_z, a whole forward pass per head",
            by_hooks,
            claim=2.0,
        ),
    )
