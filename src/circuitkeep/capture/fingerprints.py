"""Telling whether a model or a tokenizer is still the one that something was made of."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from circuitkeep.capture.find import find_model

# Where the model came from and how it is run, not what it computes.
_VOLATILE = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")


def fingerprint_model(model: nn.Module) -> str:
    """SHA-256 over the configuration and every weight; one pass over the weights.

    A model has the same fingerprint before it is saved and after it is loaded.
    """
    digest = hashlib.sha256()
    inner = find_model(model)
    config = getattr(inner, "config", None)
    if config is not None and hasattr(config, "to_diff_dict"):
        content = config.to_diff_dict()
        for volatile in _VOLATILE:
            content.pop(volatile, None)
        digest.update(json.dumps(content, sort_keys=True, default=str).encode())
    for name, value in sorted(inner.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_tokenizer(tokenizer: Any) -> str:
    """SHA-256 over the vocabulary and the special tokens; a constant if there is no tokenizer."""
    if tokenizer is None:
        return "none"
    content = [sorted(tokenizer.get_vocab().items()), sorted(tokenizer.all_special_tokens)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
