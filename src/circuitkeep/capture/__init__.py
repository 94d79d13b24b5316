"""Reading and replacing what heads do: ``with capture(model, sites) as captured: ...``.

Two backends behind one interface: Hugging Face models through transformers' attention interface
(fast; what training uses), and `transformer_lens.TransformerBridge` through its hooks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jaxtyping import Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from circuitkeep.capture.base import Backend, probe_mode
from circuitkeep.capture.edits import Edit, Edits
from circuitkeep.capture.find import find_model, is_bridge
from circuitkeep.capture.sites import Captured, Sites

__all__ = [
    "Backend",
    "Captured",
    "Edit",
    "Edits",
    "Sites",
    "attach",
    "capture",
    "find_model",
    "probe_mode",
]


def attach(model: nn.Module) -> Backend:
    """Choose the backend for `model` and verify once that it can see what heads do.

    Args:
        model: A Hugging Face causal language model or a `TransformerBridge`.

    Raises:
        ValueError: If the model is neither, or its attention cannot be captured; the message
            names the model's class and the remedy.
    """
    if is_bridge(model):
        from circuitkeep.capture.bridge import BridgeBackend

        return BridgeBackend(model)  # type: ignore[arg-type]
    if isinstance(model, PreTrainedModel):
        from circuitkeep.capture.hf import HFBackend

        return HFBackend(model)
    raise ValueError(
        f"{type(model).__name__} is neither a Hugging Face causal language model nor a "
        "transformer_lens.TransformerBridge"
    )


@contextmanager
def capture(
    model: nn.Module | Backend, sites: Sites, queries: Int[Tensor, "batch query"] | None = None
) -> Iterator[tuple[Backend, Captured]]:
    """Attach to `model` and record `sites` of the forward passes run through the backend.

    Yields:
        The backend, whose ``forward(tokens)`` runs the model, and what it captured.
    """
    backend = model if isinstance(model, Backend) else attach(model)
    with backend.capture(sites, queries) as captured:
        yield backend, captured
