"""The suite ``overhead``: what a guarded training step costs beside a plain one."""

from __future__ import annotations

import functools
import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from circuitkeep.bench.clock import Clock, Counter
from circuitkeep.bench.gpt2 import CONTEXT, Subject, build_subject
from circuitkeep.bench.machine import describe_machine, find_device
from circuitkeep.bench.memory import kept_by_the_process
from circuitkeep.bench.overhead_report import PLAIN, Cost, OverheadFindings
from circuitkeep.bench.race import DisagreementError
from circuitkeep.bench.rivals import (
    GUARDED,
    RIVALS,
    AttentionMSE,
    BridgeHooks,
    Guarded,
    TrainingStep,
)
from circuitkeep.bench.suites import LEAST_REPEATS, Findings, Progress, Suite
from circuitkeep.callbacks import CircuitPreservation
from circuitkeep.callbacks.budget import BLOCKS
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.penalties import PatternDivergence
from circuitkeep.probes import RepeatedTokens
from circuitkeep.probing import probe_context

MEASURED_STEPS = 3 * BLOCKS + 1
"""Until a guard with a budget has chosen: at the beginning of the step after those it measures."""
TOLERANCE_NATS = 1e-4
"""How far a contender's task loss may be from the plain one's, in fp32."""


@dataclass(frozen=True, kw_only=True)
class OverheadSuite(Suite):
    """Training steps of one model, plain, guarded, and with what people use today.

    Attributes:
        rows: Of a training batch.
        length: Tokens per row.
        steps: Timed per round and contender, after one on a single row that is not.
        contenders: Those to measure; all if None. The plain step is always among them.
        heads_guarded: Written ``L5H1``.
        probe_length, pool_rows: Tokens per probe row, and rows to draw from, of the contender
            ``guard``.
        precision: Of Lightning's trainer: ``32-true`` or ``bf16-mixed``.
        layers, heads, d_model, vocab: The model's shape.
        seed: Of weights and tokens.
        repeats: Rounds; in each of them every contender takes its steps once, in turn.
        device: ``cpu``, ``cuda`` or ``cuda:NUMBER``.

    Raises:
        ValueError: If a number is out of range, a head outside the model, or a contender unknown.
    """

    rows: int = 8
    length: int = 256
    steps: int = 1
    contenders: Sequence[str] | None = None
    heads_guarded: Sequence[str] = ("L4H11", "L5H5", "L6H9")
    probe_length: int = 32
    pool_rows: int = 512
    precision: str = "32-true"
    layers: int = 12
    heads: int = 12
    d_model: int = 768
    vocab: int = 50_257
    seed: int = 0
    repeats: int = LEAST_REPEATS
    device: str = "cpu"
    _guards: dict[str, tuple[Callable[[], CircuitPreservation], Guarded]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, int) and one.name != "seed" and value < 1:
                raise ValueError(f"bench.{one.name} must be at least 1, got {value}")
        Circuit("guarded", (Role("induction", self._heads),), {}, "accuracy", "bench").check_model(
            self.layers, self.heads
        )
        if self.repeats < LEAST_REPEATS:
            raise ValueError(
                f"bench.repeats={self.repeats}: a median and its range need at least "
                f"{LEAST_REPEATS} rounds"
            )
        unknown = set(self.contenders or ()) - set(self.names)
        if unknown:
            raise ValueError(
                f"there is no contender {min(unknown)!r}; known: {', '.join(self.names)}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """All contenders, the plain step first."""
        return (PLAIN, *GUARDED, *RIVALS)

    @property
    def _heads(self) -> tuple[Head, ...]:
        return tuple(Head.parse(head) for head in self.heads_guarded)

    def run(self, progress: Progress) -> Findings:
        """See `Suite.run`.

        Every round begins with another contender. Operations and memory are counted in a step of
        their own, which is not timed.

        Raises:
            ValueError: If the device is not there.
            DisagreementError: If a contender computes another task loss than the plain step.
        """
        gc.freeze()  # what is there now need not be looked through after every fit
        try:
            with kept_by_the_process():
                return self._measure(progress)
        finally:
            gc.unfreeze()

    def _measure(self, progress: Progress) -> Findings:
        device = find_device(self.device)
        shape = (self.layers, self.heads, self.d_model, self.vocab)
        context = max(CONTEXT, self.length, self.probe_length)
        subject = build_subject(*shape, self.seed, device, context)
        generator = torch.Generator().manual_seed(self.seed)
        sizes = [(1, self.length), *[(self.rows, self.length)] * self.steps]  # the first: untimed
        tokens = [torch.randint(self.vocab, size, generator=generator) for size in sizes]
        wanted = (PLAIN, *(n for n in self.names[1:] if n in (self.contenders or self.names)))
        total, done = len(wanted) * (self.repeats + 1), 0
        counted: dict[str, tuple[int, int]] = {}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in wanted}
        with tempfile.TemporaryDirectory() as folder:

            def fit(name: str, counts: bool = False) -> tuple[tuple[float, float], Tensor, Any]:
                gc.collect()  # a module and its callbacks hold each other
                module, callbacks = self._contender(name, subject, tokens, Path(folder))
                unused = subject.model if name == "bridge hooks" else subject.bridge
                watch = Counter(device, unused) if counts else Clock(device)
                return self._fit(module, callbacks, device, watch)

            losses: dict[str, Tensor] = {}
            for name in wanted:
                progress(f"{name}, counting", done, total)
                _, losses[name], counted[name] = fit(name, counts=True)
                _agree(name, losses[name], losses[PLAIN])
                done += 1
            for number in range(self.repeats):
                first = number % len(wanted)
                for name in (*wanted[first:], *wanted[:first]):
                    progress(name, done, total)
                    times[name].append(fit(name)[0])
                    done += 1
        costs = {}
        for name in wanted:
            seconds, cpu_seconds = zip(*times[name], strict=True)
            measured = seconds, cpu_seconds, *counted[name]
            if name in self._guards:
                _, one = self._guards[name]
                costs[name] = Cost(one.about, *measured, one.claim, one.every_n)
            else:
                costs[name] = Cost(RIVALS.get(name, TrainingStep).about, *measured)
        work = {"rows": self.rows, "tokens_per_row": self.length, "heads": len(self.heads_guarded)}
        return OverheadFindings(costs, work, self.repeats, describe_machine(device))

    def _contender(
        self, name: str, subject: Subject, tokens: Sequence[Tensor], folder: Path
    ) -> tuple[TrainingStep, list[Callback]]:
        model: Any = subject.model.train()
        if name == PLAIN:
            return TrainingStep(model, tokens), []
        if name == "attention MSE":
            return AttentionMSE(model, tokens, self._heads), []
        if name == "bridge hooks":
            context = probe_context(subject.backend)
            rows = RepeatedTokens(length=64).batch(context, "train", 8, self.seed).tokens
            return BridgeHooks(subject.bridge.train(), tokens, rows, self._heads), []
        if name in RIVALS:
            return RIVALS[name](model, tokens), []
        if name not in self._guards:
            self._guards[name] = self._guard(GUARDED[name], subject, folder)
        # A new one every time: one that was used holds on to its trainer.
        return TrainingStep(model, tokens), [self._guards[name][0]()]

    def _guard(
        self, one: Guarded, subject: Subject, folder: Path
    ) -> tuple[Callable[[], CircuitPreservation], Guarded]:
        """What makes a guard that is due in every step, and how it would be used."""
        length = one.length or self.probe_length
        spec = {"_target_": "circuitkeep.probes.RepeatedTokens", "length": length}
        circuit = Circuit("guarded", (Role("induction", self._heads),), spec, "accuracy", "bench")
        make = functools.partial(
            CircuitPreservation,
            circuit,
            PatternDivergence() if one.patterns_only else None,
            # Kept between the rounds: it is made once in a training, and not a step's cost.
            reference=folder / f"{len(self._guards)}.safetensors",
        )
        if one.budget is None:
            settings = {"pool_rows": self.pool_rows, **one.settings}
            return functools.partial(make, every_n_steps=1, **settings), one
        chosen = self._chosen(make(budget=one.budget, **one.settings), subject)
        gc.collect()  # its optimizer's state is as large as two models
        rows, every_n = chosen["rows"], chosen["every_n"]
        about = f"{one.about}, which chose {rows} rows every {every_n} steps"
        measured = functools.partial(make, every_n_steps=1, rows_per_step=rows)
        return measured, replace(one, about=about, every_n=every_n)

    def _chosen(self, guard: CircuitPreservation, subject: Subject) -> dict[str, Any]:
        """What a guard with a budget chooses."""
        shape = (MEASURED_STEPS, self.rows, self.length)
        generator = torch.Generator().manual_seed(self.seed)
        tokens = torch.randint(self.vocab, shape, generator=generator).unbind()
        device = subject.backend.device
        self._fit(TrainingStep(subject.model, tokens), [guard], device, Clock(device))
        return guard.state_dict()["budget"]

    def _fit(
        self,
        module: TrainingStep,
        callbacks: list[Callback],
        device: torch.device,
        watch: Clock,
    ) -> tuple[tuple[float, float], Tensor, tuple[int, int]]:
        """Both times per step after the first, the losses, and what `watch` counted."""
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=[device.index or 0] if device.type == "cuda" else 1,
            precision=self.precision,  # pyright: ignore[reportArgumentType]
            max_steps=len(module.tokens),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            # First, so that what the guard does in its hooks counts too.
            callbacks=[watch, *callbacks],
        )
        with torch.enable_grad():
            trainer.fit(module)
        module.model.zero_grad(set_to_none=True)
        counted = (watch.flops, watch.peak_bytes) if isinstance(watch, Counter) else (0, 0)
        times = watch.seconds / self.steps, watch.cpu_seconds / self.steps
        return times, torch.stack(module.losses).cpu(), counted


def _agree(name: str, losses: Tensor, plain: Tensor) -> None:
    difference = (losses - plain).abs().max().item()
    if not difference <= TOLERANCE_NATS * max(1.0, plain.abs().max().item()):
        raise DisagreementError(
            f"{name} computes another task loss than a plain step (they differ by "
            f"{difference:.2g} nats), so comparing their times says nothing"
        )
