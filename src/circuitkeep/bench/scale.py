"""The suite ``scale``: what the guard would add to the training of a large model, on paper.

What processes send each other is counted here, on a small model; the rest is arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table

from circuitkeep.bench.machine import describe_machine
from circuitkeep.bench.suites import Findings, Progress, Suite
from circuitkeep.bench.traffic import STRATEGIES, Traffic, measure_traffic

BYTES = 2
"""Of a weight, gradient or activation in bf16."""


@dataclass(frozen=True, kw_only=True)
class ScaleSuite(Suite):
    """A Llama of 7B parameters by default, on H100s.

    Attributes:
        gpus: Numbers of GPUs, each a column; all of them train on different data.
        gpus_per_node: Beyond these the slower network counts.
        layers, d_model, d_mlp, vocab: The model's shape; the MLPs are gated.
        length: Tokens per training row.
        rows_per_gpu: Training rows of each GPU per step.
        probe_rows: Of a due step, over all GPUs; each GPU runs at least one. None: one per GPU.
        probe_length: Tokens per probe row.
        flops_per_s: That a GPU sustains in training.
        memory_bytes_per_s: That a GPU reads its memory with.
        node_bytes_per_s, network_bytes_per_s: That a GPU receives within a node, and between nodes.

    Raises:
        ValueError: If a number is out of range.
    """

    gpus: Sequence[int] = (8, 64)
    gpus_per_node: int = 8
    layers: int = 32
    d_model: int = 4096
    d_mlp: int = 11_008
    vocab: int = 32_000
    length: int = 4096
    rows_per_gpu: int = 4
    probe_rows: int | None = None
    probe_length: int = 32
    flops_per_s: float = 4e14
    memory_bytes_per_s: float = 3.35e12
    node_bytes_per_s: float = 3e11
    network_bytes_per_s: float = 4e10

    def __post_init__(self) -> None:
        for one in fields(self):
            values = getattr(self, one.name)
            for value in values if isinstance(values, Sequence) else [values]:
                if value is not None and not value > 0:
                    raise ValueError(f"bench.{one.name} must be above 0, got {value}")

    @property
    def parameters(self) -> int:
        """Of the layers and of the unembedding, which do the work."""
        layer = 4 * self.d_model**2 + 3 * self.d_model * self.d_mlp
        return self.layers * layer + self.vocab * self.d_model

    def run(self, progress: Progress) -> Findings:
        """See `Suite.run`."""
        progress("counting what processes send each other", 0, 1)
        traffic = measure_traffic()
        progress("done", 1, 1)
        return ScaleFindings(self, traffic)

    def step_s(self) -> float:
        """Seconds of a plain step: 6 operations per parameter and token, and causal attention."""
        tokens = self.rows_per_gpu * self.length
        attention = 6 * self.layers * self.d_model * self.length * tokens
        return (6 * self.parameters * tokens + attention) / self.flops_per_s

    def rows_of(self, gpus: int) -> int:
        """Probe rows of each GPU in a due step."""
        return 1 if self.probe_rows is None else math.ceil(self.probe_rows / gpus)

    def probe_s(self, gpus: int) -> float:
        """Seconds of the probe's passes on one GPU: operations, or reading the weights thrice."""
        tokens = self.rows_of(gpus) * self.probe_length
        computing = 6 * self.parameters * tokens / self.flops_per_s
        return max(computing, 3 * BYTES * self.parameters / self.memory_bytes_per_s)

    def gather_s(self, gpus: int, times: int) -> float:
        """Seconds to receive all weights that other GPUs hold, `times` times over."""
        slow = gpus > self.gpus_per_node
        speed = self.network_bytes_per_s if slow else self.node_bytes_per_s
        return times * BYTES * self.parameters * (1 - 1 / gpus) / speed

    def activation_bytes(self, gpus: int) -> int:
        """That the probe's rows on one GPU keep for the backward pass.

        34 bytes per token, layer and channel, as Korthikanti et al. 2022 (arXiv:2205.05198) count
        for 16 bits without attention maps.
        """
        tokens = self.rows_of(gpus) * self.probe_length
        return 34 * tokens * self.layers * self.d_model


@dataclass(frozen=True)
class ScaleFindings(Findings):
    """What was counted, and what follows for the suite's model."""

    suite: ScaleSuite
    traffic: Traffic

    def content(self) -> dict[str, Any]:
        """See `Findings.content`."""
        suite = self.suite
        return {
            "machine": describe_machine(torch.device("cpu")),
            "traffic": {name: dict(found) for name, found in self.traffic.items()},
            "model": {one.name: getattr(suite, one.name) for one in fields(suite)}
            | {"gpus": list(suite.gpus), "parameters": suite.parameters},
            "plain_step_s": suite.step_s(),
            "added": [
                self._added(gpus, strategy) for gpus in suite.gpus for strategy in STRATEGIES
            ],
        }

    def _added(self, gpus: int, strategy: str) -> dict[str, Any]:
        suite, found = self.suite, self.traffic[strategy]
        gathered = found["guarded"]["weights"] - found["plain"]["weights"]
        # Whole gathers: in the small model the embedding, which stays gathered, is a good part.
        times = math.ceil(gathered - 0.01)
        probe_s, gather_s = suite.probe_s(gpus), suite.gather_s(gpus, times)
        step_s = suite.step_s()
        return {
            "gpus": gpus,
            "strategy": strategy,
            "probe_s": probe_s,
            "gathers": times,
            "gather_bytes": times * BYTES * suite.parameters * (1 - 1 / gpus),
            "gather_s": gather_s,
            "activation_bytes": suite.activation_bytes(gpus),
            "overlapped_share": max(probe_s, gather_s) / step_s,
            "every_n_for_3_percent": math.ceil(max(probe_s, gather_s) / (0.03 * step_s)),
        }

    def shown(self) -> list[RenderableType]:
        """See `Findings.shown`."""
        content = self.content()
        title = (
            f"\n{self.suite.parameters / 1e9:.1f}B parameters, a plain step of "
            f"{content['plain_step_s']:.2f} s; added per due step and GPU"
        )
        table = Table(title=title, title_justify="left", box=None)
        for name in ("GPUs", "strategy"):
            table.add_column(name, no_wrap=True)
        for name in ("compute ms", "gathers", "GiB", "ms", "memory MiB", "of a step", "n for 3%"):
            table.add_column(name, justify="right", no_wrap=True)
        for one in content["added"]:
            table.add_row(
                str(one["gpus"]),
                one["strategy"],
                f"{1000 * one['probe_s']:.0f}",
                str(one["gathers"]),
                f"{one['gather_bytes'] / 2**30:.1f}",
                f"{1000 * one['gather_s']:.0f}",
                f"{one['activation_bytes'] / 2**20:.0f}",
                f"{100 * one['overlapped_share']:.1f}%",
                str(one["every_n_for_3_percent"]),
            )
        notes = [
            "Counted in two processes: how often the weights are gathered more than in a plain "
            "step; gradients are reduced as often as without the guard. Assumed: the speeds of "
            "the settings, and gathering that overlaps computing.",
            "Compute: operations, or reading the weights three times, whichever takes longer. "
            "n for 3%: the every_n_steps that keeps what is added within 3% of the time.",
        ]
        return [table, "", *notes]
