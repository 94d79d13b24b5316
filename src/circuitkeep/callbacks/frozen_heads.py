"""`FrozenHeads`: the weights of some heads do not change."""

from __future__ import annotations

import os
from typing import Any

import torch
from jaxtyping import Bool
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from circuitkeep.callbacks.base_weights import refuse_shards
from circuitkeep.capture import Backend, attach, find_model
from circuitkeep.capture.weights import HeadWeights, head_weights
from circuitkeep.circuits import Circuit, Head
from circuitkeep.guard.subject import as_circuit


class FrozenHeads(Callback):
    """Keep q, k, v and o of the circuit's heads, biases included, bit for bit as they are.

    Their part of every gradient is set to 0 before gradients are clipped, and what a step moves
    all the same (weight decay, momentum) is put back right after it.

    What the heads read still changes: embeddings, MLPs, other heads, and the norms before the
    attention and on its queries and keys. Under grouped-query attention a head shares its keys and
    values with its group, whose other heads go on with frozen keys and values too.

    Args:
        circuit: A circuit file, or a `Circuit`.
        model: Attribute path of the model in the LightningModule, if it holds several.

    Raises:
        ValueError: At the start of training, for a circuit that does not fit the model; for a
            strategy that shards weights; for a layout that is not known, or with adapters, where a
            head's weights are no part of any parameter.
    """

    def __init__(self, circuit: str | os.PathLike[str] | Circuit, model: str | None = None) -> None:
        self.circuit = as_circuit(circuit)
        self.model = model
        self._frozen: dict[nn.Parameter, tuple[Tensor, Tensor]] = {}
        self._handles: list[RemovableHandle] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be right."""
        if stage == "fit":
            refuse_shards(trainer, type(self).__name__)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the heads' weights, and watch the optimizers."""
        masks = head_masks(attach(find_model(pl_module, self.model)), self.circuit)
        # Of a resumed run, too: they have not changed since.
        self._frozen = {p: (mask, p.detach()[mask].clone()) for p, mask in masks.items()}
        self._handles = [o.register_step_post_hook(self._restore) for o in trainer.optimizers]

    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """Without their gradients, which would count when the others are clipped."""
        for parameter, (mask, _) in self._frozen.items():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(mask, 0)

    @torch.no_grad()
    def _restore(self, *_: Any) -> None:
        for parameter, (mask, kept) in self._frozen.items():
            parameter[mask] = kept

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the optimizers as they were."""
        self._release()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Leave the optimizers as they were."""
        self._release()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._frozen = [], {}


def head_masks(backend: Backend, circuit: Circuit) -> dict[nn.Parameter, Bool[Tensor, "..."]]:
    """Which entries of which parameters are q, k, v and o of a circuit's heads.

    Raises:
        ValueError: If the model lacks a head, or the weights of one are no part of any parameter.
    """
    circuit.check_model(backend.n_layers, backend.n_heads)
    owners = {p.untyped_storage().data_ptr(): p for p in backend.model.parameters()}
    masks: dict[nn.Parameter, Tensor] = {}
    for head in circuit.heads:
        # One layer at a time: several would be stacked, which copies them.
        for view in _parts(head_weights(backend, [head.layer]), head):
            owner = owners.get(view.untyped_storage().data_ptr())
            if owner is None or not owner.is_contiguous():
                raise ValueError(
                    f"FrozenHeads: the weights of {head} in {type(backend.model).__name__} are "
                    "put together from several parameters (an adapter?), so that they cannot be "
                    "frozen one by one; merge the adapter first"
                )
            mask = masks.setdefault(owner, torch.zeros_like(owner, dtype=torch.bool))
            start = view.storage_offset() - owner.storage_offset()
            # The same places as the view's, in the mask.
            mask.as_strided(view.shape, view.stride(), start).fill_(True)
    return masks


def _parts(layer: HeadWeights, head: Head) -> list[Tensor]:
    group = head.index * layer.kv_W_K.shape[1] // layer.W_Q.shape[1]
    own = (layer.W_Q, layer.b_Q, layer.W_O)
    shared = (layer.kv_W_K, layer.kv_W_V, layer.kv_b_K, layer.kv_b_V)
    return [
        part[0, index]
        for parts, index in ((own, head.index), (shared, group))
        for part in parts
        if part is not None
    ]
