"""The cells of the strategies suite: what is trained, under what, and what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from circuitkeep.bench.strategies_task import TaskSettings
from circuitkeep.penalties import (
    AttributionDrift,
    BehaviourKL,
    CompositionDrift,
    EffectDrift,
    GeometryDrift,
    HeadOutputDrift,
    HeadScoreFloor,
    HeadWeightDrift,
    OVTransformDrift,
    PatternDivergence,
    Rehearsal,
    Sum,
)

PENALTIES: Mapping[str, Callable[[], Sum]] = {
    "default": lambda: Sum({"pattern": PatternDivergence(), "behaviour": BehaviourKL()}),
    "patterns": lambda: Sum({"pattern": PatternDivergence()}),
    # The square of a drop of some percent is small beside a loss in nats.
    "floor": lambda: Sum({"floor": HeadScoreFloor(margin=0.0)}, {"floor": 1000.0}),
    "outputs at z": lambda: Sum({"output": HeadOutputDrift()}),
    "outputs at result": lambda: Sum({"output": HeadOutputDrift("result", queries="all")}),
    "rehearsal": lambda: Sum({"rehearsal": Rehearsal()}),
    "attribution": lambda: Sum({"attribution": AttributionDrift()}),
    "effect": lambda: Sum({"effect": EffectDrift()}),
    "weights": lambda: Sum({"weights": HeadWeightDrift()}),
    "composition": lambda: Sum({"composition": CompositionDrift()}),
    "OV transforms": lambda: Sum({"ov": OVTransformDrift()}),
    "shape of manifolds": lambda: Sum({"shape": GeometryDrift("shape")}),
    "place of manifolds": lambda: Sum({"place": GeometryDrift("place")}),
    "weights and patterns": lambda: Sum(
        {"weights": HeadWeightDrift(), "pattern": PatternDivergence()}
    ),
}
"""What the callbacks are given, by name. Where no logits are needed the pass may stop early."""


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        task: See `TaskSettings`; its model is set per table.
        trainer: Options of the Trainer.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        rows: Probe rows per step, over all processes.
        circuits: How many are guarded.
        penalty: Which of `PENALTIES`.
        every_n_steps: Of the callback.
        warmup_steps: Of the callback.
        callbacks: Others in the trainer: ``ema``.
        validate: Whether there is a validation after each batch.
        resumed: Whether the second step is that of a run resumed from a checkpoint; it is compared
            with the second step of an uninterrupted one. The base's fingerprint must be that of
            the model in one process.
        tolerance: Largest difference that counts as equal, relative to the largest entry.
    """

    task: TaskSettings = field(default_factory=TaskSettings)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "32-true"
    rows: int = 6
    circuits: int = 1
    penalty: str = "default"
    every_n_steps: int = 1
    warmup_steps: int = 0
    callbacks: tuple[str, ...] = ()
    validate: bool = False
    resumed: bool = False
    tolerance: float = 1e-6


_CLIP = {"gradient_clip_val": 0.1}
SETTINGS: dict[str, Setting] = {
    "plain": Setting(),
    "patterns only (the pass may stop early)": Setting(penalty="patterns"),
    "uneven share: 3 probe rows": Setting(rows=3),
    "empty share: 1 probe row": Setting(rows=1),
    "empty share, patterns only": Setting(rows=1, penalty="patterns"),
    "every 2nd step, warm-up": Setting(every_n_steps=2, warmup_steps=3),
    "two circuits": Setting(circuits=2),
    "two circuits, patterns only": Setting(circuits=2, penalty="patterns"),
    "accumulation": Setting(trainer={"accumulate_grad_batches": 2}),
    "clipping by norm": Setting(trainer={**_CLIP, "gradient_clip_algorithm": "norm"}),
    "clipping by value": Setting(trainer={**_CLIP, "gradient_clip_algorithm": "value"}),
    "manual optimization": Setting(TaskSettings(optimizers=1)),
    "manual, two optimizers": Setting(TaskSettings(optimizers=2)),
    "bf16-mixed": Setting(precision="bf16-mixed", tolerance=5e-2),
    "16-mixed, grad scaler": Setting(precision="16-mixed", tolerance=1e-2),
    "torch.compile": Setting(TaskSettings(compiled=True)),
    "activation checkpointing": Setting(TaskSettings(checkpointing="transformers")),
    "checkpointing, patterns only": Setting(
        TaskSettings(checkpointing="transformers"), penalty="patterns"
    ),
    "checkpointing by torch's wrapper": Setting(TaskSettings(checkpointing="torch")),
    "wrapper, patterns only": Setting(TaskSettings(checkpointing="torch"), penalty="patterns"),
    "LoRA": Setting(TaskSettings(lora=True)),
    "frozen embedding and MLP": Setting(TaskSettings(frozen=True)),
    "tied embeddings": Setting(TaskSettings(tied=True)),
    "dropout": Setting(TaskSettings(dropout=0.3)),
    "step returns a dict": Setting(TaskSettings(returns="dict")),
    "step returns None": Setting(TaskSettings(returns="none")),
    "EMA and validation": Setting(callbacks=("ema",), validate=True),
    "resumed from a checkpoint": Setting(resumed=True, tolerance=0.0),
    "the model wrapped by itself": Setting(TaskSettings(wrap_model=True)),
    "heads shared out": Setting(TaskSettings(split_heads=True)),
    **{
        f"penalty: {name}": Setting(penalty=name)
        for name in PENALTIES
        if name not in ("default", "patterns")
    },
}
STRATEGIES = {
    "single": 1,
    "ddp": 2,
    "ddp unused": 2,
    "ddp static": 2,
    "fsdp": 2,
    "fsdp whole": 2,
    "fsdp2": 2,
    "tp": 2,
}
"""How many processes each takes."""
MODELS = ("gpt2", "llama", "bridge")


@dataclass(frozen=True)
class Cell:
    """One training."""

    model: str
    setting: str
    strategy: str

    @property
    def exists(self) -> bool:
        """Whether there is such a training."""
        settings = SETTINGS[self.setting].task
        if self.strategy == "tp" and self.model != "llama":  # whose names it needs
            return False
        if settings.tied and self.model == "gpt2":  # it always is
            return False
        return not (settings.split_heads and self.strategy != "tp") and not (
            settings.wrap_model and self.strategy != "fsdp"
        )


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Attributes:
        cell: Which.
        kind: ``equal``, ``differs``, ``refused`` (by circuitkeep, before the first step),
            ``elsewhere`` (the same training without circuitkeep fails or differs too), ``failed``.
        difference: Largest of all optimizer steps, relative to the largest entry.
        share: How much of the expected gradient is the penalties', the same way.
        message: Of the refusal or the failure.
    """

    cell: Cell
    kind: str
    difference: float | None = None
    share: float | None = None
    message: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
