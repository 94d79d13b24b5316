"""`Guard`: the penalty for a drifting circuit, in whosever training."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from circuitkeep.capture import Backend, attach, find_model
from circuitkeep.capture.reach import Reach
from circuitkeep.circuits import Circuit
from circuitkeep.guard.base_reference import base_reference
from circuitkeep.guard.checks import check_finite, check_reach, refuse_backend, refuse_model
from circuitkeep.guard.constraint import Constraint, Multiplier, as_constraint
from circuitkeep.guard.due import Due, Seen
from circuitkeep.guard.follow import Following
from circuitkeep.guard.schedule import Pace, Schedule, check_rows, check_settings
from circuitkeep.guard.subject import as_circuit, as_probe
from circuitkeep.guard.training import Training, part_of
from circuitkeep.penalties import Activations, BehaviourKL, PatternDivergence, Penalty, Sum
from circuitkeep.probes import Probe, build_probe
from circuitkeep.reference import Question, Reference, check_manifolds


class Guard:
    """Settings, reference and state of the penalty for one circuit; what all trainers share.

    A trainer calls `begin` when its training starts, `due` inside every step, and `end`. For the
    settings see `circuitkeep.callbacks.CircuitPreservation`.

    Attributes:
        owner: What users know it by, for messages.
    """

    owner = "Guard"

    def __init__(
        self,
        circuit: str | os.PathLike[str] | Circuit,
        penalty: Penalty | None = None,
        probe: Probe | Mapping[str, Any] | None = None,
        weight: float = 1.0,
        warmup_steps: int = 0,
        decay: str | None = None,
        constraint: float | Constraint | None = None,
        every_n_steps: int = 1,
        rows_per_step: int | None = None,
        budget: float | None = None,
        pool_rows: int = 512,
        seed: int = 0,
        model: str | None = None,
        tokenizer: Any = None,
        reference: str | os.PathLike[str] | None = None,
        follow_every_n_steps: int | None = None,
    ) -> None:
        self.circuit = self._named = as_circuit(circuit)
        if penalty is None:
            penalty = Sum({"pattern": PatternDivergence(), "behaviour": BehaviourKL()})
        self.penalty = penalty if isinstance(penalty, Sum) else Sum({"drift": penalty})
        check_manifolds(self.circuit, self.penalty.needs)
        self.probe = as_probe(probe)
        check_settings(
            self.owner,
            weight=weight,
            warmup_steps=warmup_steps,
            every_n_steps=every_n_steps,
            rows_per_step=rows_per_step,
            pool_rows=pool_rows,
            budget=budget,
            decay=decay,
            constrained=constraint is not None,
        )
        self._following = None
        if follow_every_n_steps is not None:
            self._following = Following(follow_every_n_steps, self.circuit, self.penalty.needs)
        self.constraint = as_constraint(constraint, self.penalty.needs)
        self.weight = float(weight)
        self.warmup_steps, self.decay = warmup_steps, decay
        self.every_n_steps = every_n_steps
        self.rows_per_step = rows_per_step
        self.budget = budget
        self.pool_rows = pool_rows
        self.seed = seed
        self.model = model
        self.tokenizer = tokenizer
        self.reference_path = None if reference is None else Path(reference)
        self._kept = ""  # where the reference in use lies
        self._resumed = False
        self._model_print = ""
        self._schedule: Schedule | None = None
        self._multiplier: Multiplier | None = None
        self._chosen: dict[str, Any] = {}  # by the run that is resumed
        self._strength = 1.0
        self._served: int | None = None  # the optimizer step that had its penalty
        self._reached = False
        self._backend: Backend | None = None
        self._reference: Reference | None = None
        self._training: Training | None = None
        self._seen: Seen | None = None

    @property
    def state_key(self) -> str:
        """One state per circuit, so that several guards keep apart."""
        return f"{self.owner}/{self.circuit.name}"

    def state_dict(self) -> dict[str, Any]:
        """Where the reference lies: a resumed run must not take the trained model for the base.

        And what budget, constraint and following have come to: a resumed run goes on with that.
        """
        chosen = self._chosen
        if self._schedule is not None:
            weight = None if self._multiplier is None else self._multiplier.state
            chosen = {"budget": self._schedule.pace.state, "constraint": weight}
            if self._following is not None:
                chosen["follow"] = self._following.state(self.circuit)
        found = {"reference": self._kept, **{key: x for key, x in chosen.items() if x is not None}}
        return found if self._strength == 1 else found | {"strength": self._strength}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Resume with the reference of the run that was stopped, unless another path is given."""
        self._kept = state_dict["reference"]
        self._resumed = bool(self._kept)
        self._chosen = {key: state_dict.get(key) for key in ("budget", "constraint", "follow")}
        self._strength = state_dict.get("strength", 1.0)

    def check_circuit(self, model: Any) -> None:
        """Refuse a circuit that does not fit `model`, by its config alone: it need not run yet.

        Raises:
            ValueError: Naming what does not fit.
        """
        config = model.config.get_text_config()
        self.circuit.check_model(config.num_hidden_layers, config.num_attention_heads)
        self.circuit.check_labels((self.probe or build_probe(self.circuit.probe)).labels)
        refuse_model(self.owner, model)

    def rows_of(self, training: Training) -> int:
        """Probe rows per due step, over all processes.

        Raises:
            ValueError: If there are more processes, each to have a row, than rows in the pool.
        """
        rows = training.place[1] if self.rows_per_step is None else self.rows_per_step
        check_rows(self.owner, rows, self.pool_rows)
        return rows

    def begin(self, training: Training, pace: Pace, end: float, model_print: str) -> None:
        """Take part in `training`, new or resumed.

        Args:
            training: The reference is made in its first due step.
            pace: When the penalty is due.
            end: How many optimizer steps the training will have taken in the end.
            model_print: Fingerprint of the base model; not used if a run is resumed.
        """
        self._training, self._model_print = training, model_print
        self.circuit = self._named
        if self._following is not None:
            self.circuit = self._following.resume(self._chosen.get("follow"), self._named)
        self._schedule = Schedule(self.weight, self.warmup_steps, pace, self.decay, end)
        if self.constraint is not None:
            found = self._chosen.get("constraint")
            self._multiplier = Multiplier(self.constraint, self.weight, found)
        self.strengthen(1.0)

    def strengthen(self, factor: float) -> None:
        """From the next step on hold the circuit harder; later and resumed runs do, too.

        Args:
            factor: Of a fixed weight; what a constraint accepts of drift is divided by it.
        """
        self._strength *= factor
        if self._multiplier is not None and self.constraint is not None:
            self._multiplier.constraint = self.constraint.tightened(self._strength)

    def end(self) -> None:
        """Let go of the training and its model."""
        self._training = self._backend = self._reference = self._seen = None
        self._resumed = self._reached = False
        self._served, self._chosen = None, {}

    def due(self, step: int, accumulate: int) -> Due | None:
        """What is to be added to the loss in optimizer step `step`; None if nothing is, or was.

        Args:
            step: Counted from 0.
            accumulate: What the loss that it is added to will be divided by.
        """
        training = self._training
        assert training is not None
        if self._backend is None:
            # Not earlier: FSDP 1 can only run the model inside its own forward pass.
            self._backend = attach(find_model(training.root, self.model))
            refuse_backend(self.owner, self._backend, self.penalty.needs)
            self._reference = self._prepare(self._backend, training)
        assert self._schedule is not None
        share = self._schedule.pace.at(step)
        if step == self._served or share is None:
            return None
        self._follow(self._backend, step, training)
        self._served = step  # of the batches that are accumulated, the first that is not skipped
        weight = self._schedule.weight_at(step) * self._strength
        if self._multiplier is not None:
            weight = self._multiplier.weight_at(step)
        scale = weight * accumulate * share.times
        return self._penalty(self._backend, step, training, share.rows, scale)

    def values(self) -> dict[str, float]:
        """The penalty and its terms in the latest due step, by the keys they are logged under.

        Over the rows of all processes, each of which calls this; without the weight. Empty before
        the first due step.

        Raises:
            ValueError: If one of them is not finite.
        """
        seen, training = self._seen, self._training
        if seen is None or training is None:
            return {}
        check_finite(self.circuit, seen.terms, seen.more, seen.step)
        prefix = f"circuit/{self.circuit.name}"
        values = {f"{prefix}/penalty/{name}": term for name, term in seen.terms.items()}
        values[f"{prefix}/penalty"] = seen.penalty
        values = {key: training.mean(value * seen.share) for key, value in values.items()}
        values |= {f"{prefix}/{name}": value for name, value in seen.more.items()}
        return {key: float(value) for key, value in values.items()}

    def _penalty(
        self, backend: Backend, step: int, training: Training, n_rows: int, scale: float | Tensor
    ) -> Due:
        reference = self._reference
        assert reference is not None
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        drawn = torch.randperm(len(reference), generator=generator)[:n_rows]
        part, share = part_of(drawn, training)
        rows, before = reference.select(part, backend.device)
        needs = self.penalty.needs

        def loss(now: Activations, reach: Reach | None) -> Tensor:
            terms = self.penalty.terms_of(now, before, rows.labels)
            penalty = self.penalty.weigh(terms)
            if reach is not None and not self._reached:
                check_reach(self.circuit, terms, needs, reach, training.root)
                self._reached = True
            more: dict[str, Tensor] = {}
            if self._multiplier is not None:
                kept = self._multiplier.kept(self.circuit, now, before, rows.labels)
                more = self._multiplier.see(training.mean(kept * share))
            detached = {name: term.detach() for name, term in terms.items()}
            self._seen = Seen(step, share, penalty.detach(), detached, more)
            if training.logs_at(step):
                training.log(self.values(), step)
            elif penalty.device.type == "cpu":  # elsewhere a check waits for the device
                check_finite(self.circuit, detached, more, step)
            return penalty * (share * scale)

        question = Question(rows, self.circuit, needs)
        return Due(backend, question, loss, first=not self._reached, drop=self._drop)

    def _follow(self, backend: Backend, step: int, training: Training) -> None:
        if self._following is None or self._reference is None:
            return
        found = self._following.look(step, backend, self.circuit, self._reference, training)
        if found is None:
            return
        moved, self._reference = found
        self.circuit = moved.circuit
        name = f"{self.circuit.name}-{self._reference.fingerprint.short}.safetensors"
        self._kept = str(Path(self._kept).with_name(name))
        if training.is_first:
            self._reference.save(self._kept)
            warnings.warn(
                f"circuit {self.circuit.name!r} is now held on other heads (step {step}): {moved}",
                stacklevel=2,
            )

    def _drop(self) -> None:
        self._served = None
        if self._multiplier is not None:
            self._multiplier.forget()

    def _prepare(self, backend: Backend, training: Training) -> Reference:
        # A reference that was given is of the circuit as it is named.
        kept = self._resumed and (self.reference_path is None or self.circuit != self._named)
        path = Path(self._kept) if kept else self.reference_path
        subject = self.circuit, self.penalty, self.probe, (self.pool_rows, self.seed)
        found = self.tokenizer, self._model_print, path, self._resumed
        reference, path = base_reference(backend, training, *subject, *found)
        self._kept = str(path.absolute())
        return reference
