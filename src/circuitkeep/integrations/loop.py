"""`CircuitGuard`: the penalty for a drifting circuit in a training loop of one's own."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel

from circuitkeep.capture import find_model
from circuitkeep.capture.fingerprints import fingerprint_model
from circuitkeep.circuits import Circuit
from circuitkeep.guard import Constraint, Guard, Training
from circuitkeep.guard.due import losses_of
from circuitkeep.guard.schedule import EveryN
from circuitkeep.penalties import Penalty
from circuitkeep.probes import Probe

T = TypeVar("T")


class CircuitGuard:
    """A circuit-preservation penalty for any loop that calls ``backward``.

    ::

        guard = CircuitGuard("induction.yaml", weight=1.0)
        for batch in batches:
            loss = model(**batch).loss + guard.penalty(model)
            loss.backward()
            ...

    It is the penalty of `circuitkeep.callbacks.CircuitPreservation`: the model as it is at the
    first call is the base, the random state is never touched, and with ``weight=0`` nothing is
    run. Several processes (`torch.distributed`) share the probe rows out. For trainers of Hugging
    Face see `circuitkeep.integrations.hf.guarded`.

    Args:
        circuit: A circuit file, or a `Circuit`.
        penalty: What drift costs; default ``PatternDivergence + BehaviourKL``.
        probe: Rows to guard on, if not those of the circuit's own probe.
        weight: Of the penalty against the task's loss, which is in nats.
        warmup_steps: Optimizer steps over which the weight rises linearly from 0.
        decay: How it falls to 0 until the end of the training: "linear" or "cosine".
        total_steps: Optimizer steps of the training, for `decay`; a trainer that knows it wins.
        constraint: What to keep at least, instead of a fixed weight; see `CircuitPreservation`.
        every_n_steps: Due every so many optimizer steps, with the penalty multiplied by as much.
        rows_per_step: Probe rows per due step, over all processes; None is one per process.
        pool_rows: Rows in the pool.
        seed: Of the pool and of the choice of rows.
        accumulate: Backward passes per optimizer step, by which the loop divides its loss. Not
            for trainers, which know theirs.
        model: Attribute path of the model in what `penalty` is given, if that holds several.
        tokenizer: A tokenizer, or where to load one; default: the model's own directory.
        reference: Where the reference is kept, if not under ``references``. A file that is there
            is used, if it was made of the same model, tokenizer, probe and circuit.
        follow_every_n_steps: Look so often whether other heads have taken up a role's job, and hold
            those; see `CircuitPreservation`.

    Raises:
        ValueError: For settings out of range or an unreadable circuit.
    """

    def __init__(
        self,
        circuit: str | os.PathLike[str] | Circuit,
        penalty: Penalty | None = None,
        probe: Probe | Mapping[str, Any] | None = None,
        weight: float = 1.0,
        warmup_steps: int = 0,
        decay: str | None = None,
        total_steps: int | None = None,
        constraint: float | Constraint | None = None,
        every_n_steps: int = 1,
        rows_per_step: int | None = None,
        pool_rows: int = 512,
        seed: int = 0,
        accumulate: int = 1,
        model: str | None = None,
        tokenizer: Any = None,
        reference: str | os.PathLike[str] | None = None,
        follow_every_n_steps: int | None = None,
    ) -> None:
        if accumulate < 1:
            raise ValueError(f"CircuitGuard: accumulate must be at least 1, got {accumulate}")
        self.guard = _Guard(
            circuit,
            penalty,
            probe,
            weight,
            warmup_steps,
            decay,
            constraint,
            every_n_steps,
            rows_per_step,
            None,
            pool_rows,
            seed,
            model,
            tokenizer,
            reference,
            follow_every_n_steps,
        )
        self.accumulate, self.total_steps = accumulate, total_steps
        self._calls = 0
        self._model: nn.Module | None = None

    def penalty(self, model: nn.Module, step: int | None = None) -> Tensor:
        """What to add to the loss before each backward pass; every process calls this.

        Without gradients (in an evaluation) it is 0, and no call is counted.

        Args:
            model: The model in training, bare or wrapped (DDP, torch.compile, peft), the same at
                every call.
            step: The optimizer step, from 0, if not one per `accumulate` calls. Of the calls with
                the same step, only the first has a penalty.

        Returns:
            The penalty times its weight and `accumulate`; 0 where nothing is due.

        Raises:
            ValueError: For a circuit that does not fit the model, a model under FSDP or DeepSpeed,
                or a penalty that does not reach its parameters or is not finite.
        """
        if self.guard.weight == 0 or not torch.is_grad_enabled():
            return torch.zeros(())
        found = find_model(model, self.guard.model)
        if self._model is None:
            self.begin(TorchTraining(model, Path()), self.total_steps)
            self._model = found
        if found is not self._model:
            raise ValueError(
                "CircuitGuard: penalty() was given another model than before; make a guard for each"
            )
        counted = self._calls // self.accumulate
        self._calls += 1
        due = self.guard.due(counted if step is None else step, self.accumulate)
        return torch.zeros(()) if due is None else losses_of([due])[0]

    def values(self) -> dict[str, float]:
        """To log: the penalty and its terms in the latest due step; see `Guard.values`."""
        return self.guard.values()

    def state_dict(self) -> dict[str, Any]:
        """Where the reference lies, the calls so far and a constraint's weight; fit for JSON."""
        return {**self.guard.state_dict(), "calls": self._calls}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resume: the model at the next call is not the base, the reference is read back."""
        self.guard.end()
        self.guard.load_state_dict(dict(state_dict))
        self._calls, self._model = state_dict["calls"], None

    def begin(self, training: Training, total_steps: int | None) -> None:
        """Take part in a training; a loop of one's own need not call this, `penalty` does.

        Raises:
            ValueError: See `penalty`.
        """
        guard = self.guard
        _refuse_unmeasured(training.root)
        model = find_model(training.root, guard.model)
        guard.check_circuit(model)
        if guard.decay and total_steps is None:
            raise ValueError(
                f"CircuitGuard: decay={guard.decay!r} lets the weight fall to 0 at the end of the "
                "training; say when that is by total_steps"
            )
        pace = EveryN(guard.every_n_steps, guard.rows_of(training))
        end = math.inf if total_steps is None else float(total_steps)
        guard.begin(training, pace, end, fingerprint_model(model))


class TorchTraining(Training):
    """A training of `root` in all processes of `torch.distributed`, if there are any."""

    def __init__(self, root: nn.Module, folder: Path) -> None:
        self.root, self.folder = root, folder

    @property
    def place(self) -> tuple[int, int]:
        """Rank and number of processes."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return 0, 1
        return distributed.get_rank(), distributed.get_world_size()

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0."""
        return self.place[0] == 0

    def mean(self, value: Tensor) -> Tensor:
        """Over all processes."""
        world = self.place[1]
        if world == 1:
            return value
        total = value.clone()
        distributed.all_reduce(total)
        return total / world

    def from_first(self, value: T) -> T:
        """What rank 0 has."""
        if self.place[1] == 1:
            return value
        box: list[Any] = [value]
        distributed.broadcast_object_list(box)
        return box[0]


class _Guard(Guard):
    owner = "CircuitGuard"


def _refuse_unmeasured(root: nn.Module) -> None:
    for module in root.modules():
        sharded = isinstance(module, (FSDPModule, FullyShardedDataParallel))
        name = "FSDP" if sharded else type(module).__name__
        if sharded or isinstance(module, nn.DataParallel) or name == "DeepSpeedEngine":
            raise ValueError(
                f"CircuitGuard: under {name} the gradient has not been shown to be right; use "
                "DistributedDataParallel, or CircuitPreservation with Lightning, which has FSDP"
            )
