"""What a penalty in training is checked for, and how it is logged."""

from __future__ import annotations

from collections.abc import Mapping

from lightning import LightningModule, Trainer
from torch import Tensor

from circuitkeep.callbacks.periodic import log_metrics
from circuitkeep.callbacks.processes import over_processes
from circuitkeep.capture.reach import Reach
from circuitkeep.circuits import Circuit


def check_reach(
    circuit: Circuit, terms: Mapping[str, Tensor], below: int, reach: Reach, module: LightningModule
) -> None:
    """Refuse a penalty whose gradient does not come to the weights that it should.

    Args:
        circuit: Named in the message.
        terms: Of the penalty; each by itself.
        below: How many layers, from the first, write into what the penalty reads.
        reach: Which weights those layers used.
        module: The module whose parameters are trained.

    Raises:
        ValueError: Naming the term or the layer, the likely causes and the remedy.
    """
    for name, term in terms.items():
        if not term.requires_grad:
            raise ValueError(
                f"the penalty for circuit {circuit.name!r} reaches no trainable parameter (term "
                f"{name!r}): every layer up to the guarded heads is frozen, or runs without "
                "gradient (reentrant checkpointing, no_grad, detach); train some of them, or "
                "leave the term out"
            )
    missed = reach.missed(sum(terms.values()), below, module)  # type: ignore[arg-type]
    if missed is not None:
        raise ValueError(
            f"the penalty for circuit {circuit.name!r} does not reach the trainable parameters of "
            f"layer {missed}: the layer runs without gradient (reentrant checkpointing, no_grad, "
            "detach), or on copies of its weights; use use_reentrant=False, or let the layer run "
            "on the module's own parameters"
        )


def check_finite(
    circuit: Circuit, terms: Mapping[str, Tensor], more: Mapping[str, Tensor], step: int
) -> None:
    """Refuse a penalty that has become infinite or no number, and a retention that is none.

    Args:
        circuit: Named in the message.
        terms: Of the penalty.
        more: What a constraint makes known, or nothing.
        step: Named in the message.

    Raises:
        ValueError: Naming the term, its value, the step and the remedy.
    """
    for name, term in terms.items():
        if not bool(term.isfinite()):
            raise ValueError(
                f"the penalty for circuit {circuit.name!r} is {term.item()} at step {step} (term "
                f"{name!r}): the run was stopped; lower the learning rate or the penalty's weight "
                "and resume from the last checkpoint"
            )
    for name, value in more.items():
        if not bool(value.isfinite()):
            raise ValueError(
                f"the {name} of circuit {circuit.name!r} is {value.item()} at step {step}: in the "
                "base the heads of some role pay no attention to their targets, so nothing can be "
                "retained of it; constrain kind='behaviour', or leave the role out of the circuit"
            )


def log_penalty(
    trainer: Trainer,
    circuit: Circuit,
    penalty: Tensor,
    terms: Mapping[str, Tensor],
    share: float,
    step: int,
    more: Mapping[str, Tensor],
) -> None:
    """Log the penalty and its terms over the rows of all processes.

    Args:
        trainer: Whose loggers; every process calls this.
        circuit: Names the keys.
        penalty: Over the rows of this process.
        terms: The same.
        share: Of this process in all rows, times the number of processes.
        step: To log at.
        more: By what stands for "penalty" in their keys; the same in every process.
    """
    prefix = f"circuit/{circuit.name}"
    values = {f"{prefix}/penalty/{name}": term.detach() for name, term in terms.items()}
    values[f"{prefix}/penalty"] = penalty.detach()
    values = {key: over_processes(trainer, value, share) for key, value in values.items()}
    values |= {f"{prefix}/{name}": value for name, value in more.items()}
    log_metrics(trainer, {key: float(value) for key, value in values.items()}, step)
