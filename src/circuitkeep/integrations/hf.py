"""The guard in Hugging Face's `Trainer` and in what derives from it, as TRL's trainers do."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, TypeVar

from accelerate import DistributedType
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from circuitkeep.files import replacing
from circuitkeep.guard.due import losses_of
from circuitkeep.integrations.loop import CircuitGuard, TorchTraining

T = TypeVar("T", bound=Trainer)

_MEASURED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def guarded(trainer_class: type[T], *guards: CircuitGuard) -> type[T]:
    """A subclass of a trainer that keeps circuits, and is used as the trainer is.

    ::

        Guarded = guarded(SFTTrainer, CircuitGuard("induction.yaml", weight=1.0))
        Guarded(model=model, args=args, train_dataset=dataset).train()

    The penalty has a backward pass of its own, before that of the first batch of each optimizer
    step. So its weight does not depend on how a trainer scales its loss (by accumulation, by the
    number of tokens), its activations are gone when the batch's are made, and the loss that is
    logged is the task's alone. Penalties are logged beside the loss, as
    ``circuit/<name>/penalty``. An evaluation has none. Each checkpoint holds the guards' state; a
    resumed training goes on with the reference it began with.

    Args:
        trainer_class: `transformers.Trainer`, or a subclass: TRL's `SFTTrainer`, `DPOTrainer`,
            `GRPOTrainer`.
        guards: One per circuit; they share the forward pass of their rows. Without a tokenizer of
            its own, a guard takes the trainer's ``processing_class``.

    Raises:
        ValueError: At the first step, for settings under which the gradient has not been shown to
            be right, and as `CircuitGuard.penalty` does.
    """
    name = f"Guarded{trainer_class.__name__}"
    return type(name, (_Guarded, trainer_class), {"circuit_guards": guards})  # type: ignore[return-value]


class _Guarded(Trainer):
    circuit_guards: tuple[CircuitGuard, ...]
    _guarding = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._active = [one for one in self.circuit_guards if one.guard.weight > 0]
        if self._active:
            self.add_callback(_SaveGuards(self._active))

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Train, with the guards as the checkpoint left them."""
        self._guarding = False
        found = resume_from_checkpoint
        if found is True:
            found = get_last_checkpoint(str(self.args.output_dir))
        if found:
            for one in self._active:
                _load(one, Path(found))
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            for one in self._active:
                one.guard.end()

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Add the gradient of what is due, and train on the batch."""
        if self._active:
            self._add_gradient()
        return super().training_step(model, inputs, *args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the penalties beside the training's loss."""
        if "loss" in logs:
            for one in self._active:
                logs |= one.values()
        super().log(logs, *args, **kwargs)

    def _add_gradient(self) -> None:
        if not self._guarding:
            self._begin()
            self._guarding = True
        divided = self.accelerator.gradient_accumulation_steps  # 1, but for the user's own
        found = [one.guard.due(self.state.global_step, divided) for one in self._active]
        due = [one for one in found if one is not None]
        if due:
            with self.compute_loss_context_manager():
                losses = losses_of(due)
            self.accelerator.backward(sum(losses[1:], losses[0]))

    def _begin(self) -> None:
        _refuse_unmeasured(self)
        model: Any = self.model
        training = TorchTraining(model, Path(str(self.args.output_dir)))
        tokenizer = getattr(self, "processing_class", None)
        for one in self._active:
            if one.guard.tokenizer is None and hasattr(tokenizer, "get_vocab"):
                one.guard.tokenizer = tokenizer
            one.begin(training, self.state.max_steps)


class _SaveGuards(TrainerCallback):
    def __init__(self, guards: list[CircuitGuard]) -> None:
        self.guards = guards

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the state of each guard into the checkpoint."""
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():
            for one in self.guards:
                with replacing(_file(one, folder)) as path:
                    path.write_text(json.dumps(one.state_dict()), "utf-8")


def _file(guard: CircuitGuard, folder: Path) -> Path:
    return folder / f"circuit_guard-{guard.guard.circuit.name}.json"


def _load(guard: CircuitGuard, folder: Path) -> None:
    path = _file(guard, folder)
    if path.is_file():
        guard.load_state_dict(json.loads(path.read_text("utf-8")))
    else:
        warnings.warn(
            f"{folder} holds no state of the guard for circuit {guard.guard.circuit.name!r}: the "
            "model as it is there is taken for the base",
            stacklevel=3,
        )


def _refuse_unmeasured(trainer: Any) -> None:
    """Refuse settings under which the gradient has not been shown to be right.

    Raises:
        ValueError: Naming the setting and the remedy.
    """
    args, accelerator = trainer.args, trainer.accelerator
    optimizer = str(getattr(args.optim, "value", args.optim))
    found = None
    if accelerator.distributed_type not in _MEASURED:
        found = f"accelerate's {accelerator.distributed_type.value}"
    elif getattr(accelerator, "parallelism_config", None) is not None:
        found = "accelerate's parallelism_config"
    elif args.n_gpu > 1 or trainer.is_model_parallel:
        found = "several GPUs in one process"
    elif "layerwise" in optimizer or "lomo" in optimizer:
        found = f"optim={optimizer!r}, which steps inside the backward pass"
    if found is not None:
        raise ValueError(
            f"CircuitGuard: the gradient has not been shown to be right under {found}; use one "
            "GPU per process and DDP (torchrun, accelerate launch), or CircuitPreservation with "
            "Lightning"
        )
