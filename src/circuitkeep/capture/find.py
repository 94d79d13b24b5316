"""Finding the language model inside somebody's LightningModule."""

from __future__ import annotations

import sys

from torch import nn
from transformers import PreTrainedModel


def is_bridge(module: object) -> bool:
    """Whether `module` is a TransformerBridge; transformer_lens is not imported to find out."""
    bridge = sys.modules.get("transformer_lens.model_bridge")
    return bridge is not None and isinstance(module, bridge.TransformerBridge)


def find_model(module: nn.Module, path: str | None = None) -> nn.Module:
    """The Hugging Face model or bridge that `module` is, or holds somewhere.

    Args:
        module: For example a LightningModule; compiled, peft and parallel wrappers are looked into.
        path: Attribute path of the model, for modules that hold more than one.

    Raises:
        ValueError: If there is none, or more than one and `path` does not say which.
    """
    if path is not None:
        try:
            module = module.get_submodule(path)
        except AttributeError as error:
            raise ValueError(
                f"model={path!r}: {type(module).__name__} has no such submodule"
            ) from error
    found = _outermost(module, "")
    if not found:
        raise ValueError(
            f"{type(module).__name__} holds neither a Hugging Face model nor a TransformerBridge"
        )
    if len(found) > 1:
        names = ", ".join(repr(name) for name in found)
        raise ValueError(
            f"{type(module).__name__} holds {len(found)} language models ({names}); name the "
            "one to guard by model='...'"
        )
    return next(iter(found.values()))


def _outermost(module: nn.Module, name: str) -> dict[str, nn.Module]:
    if isinstance(module, PreTrainedModel) or is_bridge(module):
        return {name: module}
    found: dict[str, nn.Module] = {}
    for child_name, child in module.named_children():
        for path, model in _outermost(
            child, f"{name}.{child_name}" if name else child_name
        ).items():
            if all(model is not other for other in found.values()):
                found[path] = model
    return found
