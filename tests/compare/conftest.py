"""A report as `compare` makes them, without models: one circuit, three checkpoints."""

import math
from dataclasses import replace
from math import exp

import pytest
import torch

from circuitkeep.compare.paired import KINDS, Kept
from circuitkeep.compare.prompts import Prompt
from circuitkeep.compare.replicates import Estimate
from circuitkeep.compare.report import (
    CheckpointResult,
    CircuitDescription,
    CircuitResult,
    Column,
    MovedHeads,
    Ranking,
    ReplicateGroup,
    Report,
    Transfer,
    TransferRow,
)

ROLES = {"previous token": ("L0H2",), "induction": ("L1H0", "L1H3")}


def circuit_result(identity, causal, behaviour):
    scores = {}
    for role, heads in ROLES.items():
        named = 0.95 * identity
        scores[role] = tuple(
            tuple(named if f"L{layer}H{head}" in heads else 0.05 for head in range(4))
            for layer in range(2)
        )
    return CircuitResult(
        identity_retention=identity,
        causal_retention=causal,
        behaviour_retention=behaviour,
        identity_interval=(identity - 0.03, identity + 0.03),
        causal_interval=(causal - 0.06, causal + 0.06),
        behaviour_interval=(behaviour - 0.02, behaviour + 0.02),
        causal_effect_nats=3.31 * causal,
        behaviour=0.99 * behaviour,
        role_scores={role: dict.fromkeys(heads, 0.95 * identity) for role, heads in ROLES.items()},
        scores=scores,
        moved={
            role: MovedHeads(heads, ("L0H3",)) if identity < 0.5 else MovedHeads()
            for role, heads in ROLES.items()
        },
        rankings={role: Ranking(2 * identity - 1, identity, float("nan")) for role in ROLES},
        contributions={head: 7.25 * causal for heads in ROLES.values() for head in heads},
    )


def checkpoint_result(name, retentions, losses):
    return CheckpointResult(
        name=name,
        path=f"runs/{name}",
        capability={
            dataset: {"loss_nats": loss, "perplexity": exp(loss), "accuracy": 0.5}
            for dataset, loss in losses.items()
        },
        circuits={"induction": circuit_result(*retentions)},
    )


@pytest.fixture
def report():
    def checkpoint(name, retentions, task, repeats):
        return checkpoint_result(name, retentions, {"key-value map": task, "repeats": repeats})

    return Report(
        base=checkpoint("base", (1.0, 1.0, 1.0), 4.012, 1.204),
        checkpoints=(
            checkpoint("unregularized", (0.35, 0.02, 0.02), 0.213, 3.871),
            checkpoint("patterns-only", (0.99, 0.90, 0.13), 0.219, 3.242),
            checkpoint("regularized", (0.97, 0.98, 0.99), 0.224, 1.231),
        ),
        circuits={
            "induction": CircuitDescription(
                roles=ROLES,
                behaviour="accuracy",
                source="circuitkeep scan",
                probe="RepeatedTokens(length=32)",
                rows=256,
                seed=7,
                ablation="mean",
                contribution="direct logit attribution",
            )
        },
        created="2025-06-03T14:02:11Z",
        command="circuitkeep compare base=models/base",
        versions={"circuitkeep": "0.1.0"},
    )


@pytest.fixture
def trajectory(report):
    """The same checkpoints as one training's."""
    return replace(report, steps=(100, 200, 300))


@pytest.fixture
def everything(report):
    """With a prompt, two groups of replicates, and a matrix of what transfers."""
    names = [checkpoint.name for checkpoint in report.checkpoints]
    generator = torch.Generator().manual_seed(0)
    tokens = ("<s>", "␣<b>", "a&b", "␣<b>", "a&b")
    patterns = tuple(
        torch.randint(0, 256, (8, 15), generator=generator, dtype=torch.uint8)
        for _ in range(1 + len(names))
    )
    heads = tuple(f"L{layer}H{head}" for layer in range(2) for head in range(4))

    def estimate(mean):
        return Estimate(mean, mean - 0.1, mean + 0.1, 0.04, 2, 256)

    def group(name, members, difference=None):
        kept = Kept(
            estimate(0.5),
            None if difference is None else estimate(difference),
            1.5,
            math.nan if difference is None else 0.004,
        )
        return ReplicateGroup(
            name,
            members,
            "" if difference is None else "plain",
            {"induction": dict.fromkeys(KINDS, kept)},
            dict.fromkeys(report.base.capability, kept),
        )

    def shares(share):
        kinds = dict.fromkeys(KINDS, (share, (share - 0.1, share + 0.1)))
        return {"induction": kinds, "induction, longer": kinds}

    columns = tuple(
        Column(name, "RepeatedTokens()", dict.fromkeys(KINDS, 0.9))
        for name in ("induction", "induction, longer")
    )
    return replace(
        report,
        prompts=(Prompt("some text", tokens, heads, patterns),),
        replicates=(group("plain", tuple(names[:1])), group("guarded", tuple(names[1:2]), 0.3)),
        transfer=Transfer(
            columns,
            (
                TransferRow("guarded", "key-value", shares(0.9)),
                TransferRow("regularized", "key-value", shares(math.nan)),
            ),
        ),
    )
