"""A suite of circuits, and a model that is held to it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from circuitkeep.capture import Backend, attach
from circuitkeep.capture.checkpoints import load_checkpoint
from circuitkeep.capture.models import has_tokenizer, load_tokenizer
from circuitkeep.checks.baseline import baseline_path, read_baseline
from circuitkeep.checks.evidence import Evidence, gather, make_rows
from circuitkeep.checks.judge import judge
from circuitkeep.checks.outcome import Outcome
from circuitkeep.checks.plan import Check, Plan, read_plan
from circuitkeep.circuits import load_circuit, located

SUFFIX = ".circuit.yaml"
Source = str | os.PathLike[str] | Backend | nn.Module
"""Where a model is, or the model."""


def circuit_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """The circuit files that are named, and those in the folders that are, in their order.

    Raises:
        FileNotFoundError: If there is nothing at a path, or no circuit file in a folder.
    """
    found = []
    for path in map(Path, paths):
        inside = sorted(path.rglob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not inside:
            raise FileNotFoundError(f"there is no *{SUFFIX} in {path}")
        if not inside[0].is_file():
            raise FileNotFoundError(f"no circuit file at {path}")
        found += inside
    return found


def load_plan(path: str | os.PathLike[str], base: bool = False) -> Plan:
    """The checks of a circuit file, with the thresholds of the baseline beside it.

    Args:
        path: Of the circuit file.
        base: Whether there is a base model to compare with.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: For what is wrong in it, naming file, line and key; or in the baseline.
    """
    circuit = load_circuit(path)
    pinned = baseline_path(path)
    thresholds = read_baseline(pinned).thresholds if pinned.is_file() else {}
    with located(path):
        plan = read_plan(circuit, thresholds, base)
        graph = None if plan.graph is None else plan.graph.beside(Path(path).parent)
    return replace(plan, graph=graph)


class Examination:
    """A model, its base perhaps, and what they do on the rows of a suite's circuits.

    Each model is loaded once, when something is asked about it. The base is measured on the rows
    of all plans at once and let go of before the model is loaded: memory holds one at a time.

    Args:
        plans: Of the circuits.
        model: Directory, hub name or checkpoint, see `load_checkpoint`; or a model at hand.
        base: What the model came of, likewise; None if it is not compared.
        tokenizer: Where to load one, or one at hand; default: the base's or the model's own, where
            they are loaded and have one.

    Raises:
        FileNotFoundError: If there is no model; once something is asked about it.
        ValueError: If two circuits have one name; later, if one does not fit the model.
    """

    def __init__(
        self,
        plans: Sequence[Plan],
        model: Source,
        base: Source | None = None,
        tokenizer: Any = None,
    ) -> None:
        names = [plan.circuit.name for plan in plans]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two circuits have the name {min(repeated)!r}; give them two")
        self.plans = tuple(plans)
        self.model, self.base = model, base
        self._where = tokenizer
        self._rows: dict[str, Any] = {}
        self._of_base: dict[str, Evidence] = {}
        self._unfit: dict[str, ValueError] = {}
        self._found: dict[str, Evidence] = {}
        self._backend: Backend | None = None
        self._tokenizer: Any = None

    def plan(self, circuit: str) -> Plan:
        """That of a circuit, by its name."""
        return next(plan for plan in self.plans if plan.circuit.name == circuit)

    def beside(self, model: Source) -> Examination:
        """The same for another model of the same base, which is measured once for both."""
        other = Examination(self.plans, model, self.base, self._where)
        if self.base is not None:
            other._rows, other._of_base = self._rows, self._of_base
            other._unfit = self._unfit
            other._tokenizer = self._tokenizer
        return other

    @property
    def backend(self) -> Backend:
        """The model that is tested."""
        if self._backend is None:
            self.measure_base()
            self._backend = _attached(self.model, self.base)
        return self._backend

    @property
    def tokenizer(self) -> Any:
        """Of both models; None where there is none."""
        if self._tokenizer is None:
            if self._where is not None:
                named = isinstance(self._where, str | os.PathLike)
                self._tokenizer = load_tokenizer(self._where) if named else self._where
                return self._tokenizer
            for where in (self.base, self.model):
                if isinstance(where, str | os.PathLike):
                    if not Path(where).is_dir() or has_tokenizer(where):
                        self._tokenizer = load_tokenizer(where)
                    break
        return self._tokenizer

    def rows(self, plan: Plan) -> Any:
        """The probe's rows, seed by seed."""
        backend = self.backend
        if plan.circuit.name in self._unfit:
            raise self._unfit[plan.circuit.name]
        if plan.circuit.name not in self._rows:
            self._rows[plan.circuit.name] = make_rows(plan, backend, self.tokenizer)
        return self._rows[plan.circuit.name]

    def evidence(self, plan: Plan) -> Evidence:
        """What the model does on a circuit's rows."""
        rows = self.rows(plan)
        if plan.circuit.name not in self._found:
            self._found[plan.circuit.name] = gather(plan, self.backend, rows)
        return self._found[plan.circuit.name]

    def base_evidence(self, plan: Plan) -> Evidence | None:
        """What the base does there; None if there is no base."""
        _ = self.backend
        return self._of_base.get(plan.circuit.name)

    def judge(self, plan: Plan, check: Check) -> Outcome:
        """Hold the model to one check."""
        return judge(plan, check, self.evidence(plan), self.base_evidence(plan))

    def measure_base(self) -> None:
        """Measure the base now, if there is one, and not with the first question about the model.

        A circuit that does not fit it is told of when something is asked about that circuit.

        Raises:
            FileNotFoundError: If it is not there.
            ValueError: If it cannot be loaded.
        """
        done = len(self._of_base) + len(self._unfit) == len(self.plans)
        if self.base is None or done:
            return
        backend = _attached(self.base, None)
        for plan in self.plans:
            name = plan.circuit.name
            try:
                self._rows[name] = make_rows(plan, backend, self.tokenizer)
                self._of_base[name] = gather(plan, backend, self._rows[name])
            except ValueError as error:
                self._unfit[name] = error
        del backend
        gc.collect()


def _attached(source: Source, base: Source | None) -> Backend:
    """A model that is loaded, or at hand."""
    if isinstance(source, str | os.PathLike):
        named = isinstance(base, str | os.PathLike)
        return attach(load_checkpoint(source, base if named else source))
    return source if isinstance(source, Backend) else attach(source)
