"""What a guarded model is checked for before it is trained, and a penalty in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from circuitkeep.capture import Backend
from circuitkeep.capture.reach import Reach
from circuitkeep.circuits import Circuit
from circuitkeep.penalties.base import Need


def refuse_model(owner: str, model: Any) -> None:
    """Refuse a model that runs otherwise in training than in the probe.

    Raises:
        ValueError: Naming the setting and the remedy.
    """
    config = model.config.get_text_config()
    softcap = getattr(config, "attn_logit_softcapping", None)
    kernel = getattr(config, "_attn_implementation", None)
    if softcap is not None and kernel == "sdpa":
        raise ValueError(
            f"{owner}: {type(model).__name__} caps its attention scores at {softcap}, which sdpa "
            "leaves out, so that it would be trained as another model than the one that is "
            "guarded; load it by attn_implementation='eager'"
        )


def refuse_backend(owner: str, backend: Backend, needs: frozenset[Need]) -> None:
    """Refuse what shows only when the model has run once; `needs` are those of the penalty.

    Raises:
        ValueError: Naming the setting and the remedy.
    """
    config: Any = backend.model.config
    heads = getattr(config.get_text_config(), "num_attention_heads", backend.n_heads)
    if heads != backend.n_heads:
        raise ValueError(
            f"{owner}: each process runs {backend.n_heads} of the model's {heads} heads (tensor "
            "parallelism over heads), so that no process sees the circuit; parallelize the MLPs "
            "only, or use FSDP"
        )
    if backend.sharded and "weights" in needs:
        raise ValueError(
            f"{owner}: the weights of heads are read outside the model's forward pass, where FSDP "
            "holds those of each layer in shards; leave the terms that need weights out "
            "(HeadWeightDrift, CompositionDrift, OVTransformDrift), train by DDP, or let FSDP wrap "
            "the module whole (FSDPStrategy without auto_wrap_policy)"
        )


def check_reach(
    circuit: Circuit,
    terms: Mapping[str, Tensor],
    needs: frozenset[Need],
    reach: Reach,
    module: nn.Module,
) -> None:
    """Refuse a penalty whose gradient does not come to the weights that it should.

    Args:
        circuit: Whose penalty it is.
        terms: Of the penalty; each by itself.
        needs: What the penalty reads.
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
    below = _layers_below(circuit, needs, len(reach.used))
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


def _layers_below(circuit: Circuit, needs: frozenset[Need], n_layers: int) -> int:
    """How many layers, from the first, write into what a penalty reads in a pass."""
    if "log_probs" in needs:
        return n_layers
    manifolds = [one.layer + 1 for one in circuit.manifolds if "manifolds" in needs]
    heads = [head.layer for head in circuit.heads]
    return max(manifolds + heads if needs - {"manifolds", "weights"} else manifolds, default=0)
