"""Twins of a model that have learned nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def shuffled_weights(model: nn.Module, seed: int) -> Iterator[None]:
    """A model of the same architecture that has learned nothing: each tensor's entries shuffled.

    Tied weights stay tied, buffers stay as they are, and the global random state is not touched.
    The weights are put back at the end, bit for bit; that takes memory for one copy of them.
    """
    kept = [parameter.detach().clone() for parameter in model.parameters()]
    generator = torch.Generator().manual_seed(seed)
    try:
        with torch.no_grad():
            for parameter in model.parameters():
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), kept, strict=True):
                parameter.copy_(value)
