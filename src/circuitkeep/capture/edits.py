"""Edits: what to put in the place of what a model computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.capture.sites import Sites
from circuitkeep.circuits import Head

Edit = Tensor | Callable[[Tensor], Tensor]
"""What takes the place of a tensor (broadcast to it), or what makes it of the model's own."""


@dataclass(frozen=True)
class Edits:
    """Replacements at sites of a forward pass; see `circuitkeep.capture.Sites` for the names.

    A head's z follows from its edited q, k, v or pattern; an edit of z itself comes after them.

    Attributes:
        z: Per head, shape ``batch pos d_head``.
        pattern: Per head, shape ``batch query key``; z is recomputed with the head's values.
        q, k, v: Per head, shape ``batch pos d``, after the rotation; the head's z is recomputed,
            other heads of the same key-value group keep theirs.
        resid: Per layer, after it, shape ``batch pos d_model``; -1 is what enters layer 0.
        mlp: Per layer, what its MLP adds to the residual stream, shape ``batch pos d_model``.
    """

    z: Mapping[Head, Edit] = field(default_factory=dict)
    pattern: Mapping[Head, Edit] = field(default_factory=dict)
    q: Mapping[Head, Edit] = field(default_factory=dict)
    k: Mapping[Head, Edit] = field(default_factory=dict)
    v: Mapping[Head, Edit] = field(default_factory=dict)
    resid: Mapping[int, Edit] = field(default_factory=dict)
    mlp: Mapping[int, Edit] = field(default_factory=dict)

    @property
    def sites(self) -> Sites:
        """Where something is replaced."""
        return Sites(
            z=tuple(self.z),
            pattern=tuple(self.pattern),
            q=tuple(self.q),
            k=tuple(self.k),
            v=tuple(self.v),
            resid=tuple(self.resid),
            mlp_out=tuple(self.mlp),
        )


def edited(own: Tensor, edit: Edit | None) -> Tensor:
    """What takes the place of `own`, in its shape, type and device."""
    if edit is None:
        return own
    value = edit if isinstance(edit, Tensor) else edit(own)
    return value.to(own).expand_as(own)


def edited_heads(
    values: Float[Tensor, "batch pos head d"], edits: Mapping[Head, Edit], layer: int
) -> Float[Tensor, "batch pos head d"]:
    """The outputs of a layer's heads with those of `edits` replaced."""
    here = {head.index: edit for head, edit in edits.items() if head.layer == layer}
    if not here:
        return values
    return torch.stack([edited(own, here.get(i)) for i, own in enumerate(values.unbind(2))], dim=2)
