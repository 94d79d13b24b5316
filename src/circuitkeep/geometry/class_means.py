"""What heads and MLPs compute at the values of a variable, class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from circuitkeep.capture import Backend, Sites, probe_mode
from circuitkeep.capture.inputs import attention_input, position_turns
from circuitkeep.circuits import CircuitError, Head, Manifold
from circuitkeep.manifolds import check_variables
from circuitkeep.probes import NO_VALUE, ProbeBatch, classes_of

_CHUNK, _NUMBERS_AT_ONCE = 32, 2**27
"""At most, of rows and of numbers captured: half a gigabyte of them in fp32."""


@dataclass(frozen=True)
class ClassMeans:
    """Means over the positions at which a manifold's variable has each value; on the CPU.

    Attributes:
        manifold: Which; its layer and dimensions play no part.
        counts: Samples of each class at each place: a position for rotary models, whose queries and
            keys depend on it, and all positions together for others.
        read_sums: What the attention of each layer reads, the stream behind its norm, summed over
            the samples of each class and place; float32.
        streams: Residual stream, by layer after which it is read; -1 is what enters the first.
        mlps: What the MLP of each layer adds to the stream.
        queries, keys: Of each head, as the model compares them (rotation and norms included).
        zs: Each head's output before W_O.
    """

    manifold: Manifold
    counts: Int[Tensor, "class place"]
    read_sums: dict[int, Float[Tensor, "class place d_model"]]
    streams: dict[int, Float[Tensor, "class d_model"]]
    mlps: dict[int, Float[Tensor, "class d_model"]]
    queries: dict[Head, Float[Tensor, "class d_qk"]]
    keys: dict[Head, Float[Tensor, "class d_qk"]]
    zs: dict[Head, Float[Tensor, "class d_head"]]

    @property
    def values(self) -> Float[Tensor, " class"]:
        """The middle of each class."""
        manifold = self.manifold
        middles = [manifold.value_of(number) for number in range(manifold.classes)]
        return torch.tensor(middles, dtype=torch.float64)

    def reads(self, layer: int) -> Float[Tensor, "class d_model"]:
        """Mean of what the attention of a layer reads."""
        return self.read_sums[layer].double().sum(1) / self.counts.sum(1, keepdim=True)


class _Sums:
    """Of one manifold, over the prompts so far."""

    def __init__(self, manifold: Manifold, places: int) -> None:
        self.manifold, self.places = manifold, places
        self.counts = torch.zeros(manifold.classes * places, dtype=torch.long)
        self.found: dict[str, dict] = {}

    def add(self, values: Tensor, mask: Tensor, kinds: Mapping[str, Mapping]) -> None:
        classes = classes_of(self.manifold, values).where(mask, NO_VALUE)
        row, position = (classes != NO_VALUE).nonzero(as_tuple=True)
        labels = classes[row, position]
        places = labels * self.places + (position if self.places > 1 else 0)
        self.counts += places.bincount(minlength=len(self.counts)).cpu()
        for kind, sites in kinds.items():
            own = self.found.setdefault(kind, {})
            index, size, dtype = labels, self.manifold.classes, torch.float64
            if kind == "read_sums":
                index, size, dtype = places, len(self.counts), torch.float32
            for site, value in sites.items():
                new = value.new_zeros(size, value.shape[-1], dtype=dtype)
                new = new.index_add_(0, index, value[row, position].to(dtype)).cpu()
                own[site] = own[site] + new if site in own else new

    def means(self) -> ClassMeans:
        counts = self.counts.view(-1, self.places)
        per_class = counts.sum(1)
        if not bool(per_class.all()):
            manifold = self.manifold
            value = manifold.says(int(per_class.argmin()))
            raise CircuitError(
                f"manifold {manifold.name!r}: {manifold.variable} is never {value} on these "
                "prompts; give more rows, fewer values or a larger step",
                *("manifolds", manifold.name, "values"),
            )
        read_sums = self.found.pop("read_sums")
        means = {
            kind: {site: total / per_class[:, None] for site, total in sites.items()}
            for kind, sites in self.found.items()
        }
        placed = {site: total.unflatten(0, counts.shape) for site, total in read_sums.items()}
        return ClassMeans(self.manifold, counts, placed, **means)


@torch.no_grad()
def class_means(
    backend: Backend, batch: ProbeBatch, manifolds: Sequence[Manifold]
) -> dict[str, ClassMeans]:
    """Measure everything in one pass over the rows, by the manifolds' names.

    Raises:
        CircuitError: If the batch does not know a variable, or a class has no sample.
        ValueError: If the backend does not capture queries and keys, or a norm is not known.
    """
    check_variables(batch, manifolds)
    layers = tuple(range(backend.n_layers))
    heads = tuple(Head(layer, index) for layer in layers for index in range(backend.n_heads))
    sites = Sites(q=heads, k=heads, z=heads, resid=(-1, *layers), mlp_out=layers)
    turned = any(position_turns(backend, layer, 1, backend.d_head) is not None for layer in layers)
    places = batch.tokens.shape[1] if turned else 1
    sums = [_Sums(one, places) for one in manifolds]
    # Queries, keys, outputs, stream and MLP of every layer.
    per_row = 5 * backend.n_layers * backend.n_heads * backend.d_head * batch.tokens.shape[1]
    for rows in torch.arange(len(batch)).split(min(_CHUNK, max(1, _NUMBERS_AT_ONCE // per_row))):
        part = batch.select(rows).to(backend.device)
        with probe_mode(backend.model), backend.capture(sites) as captured:
            backend.forward(part.tokens)
        kinds = {
            "read_sums": {
                layer: attention_input(backend, layer, captured.resids[layer - 1])
                for layer in layers
            },
            "streams": captured.resids,
            "mlps": captured.mlp_outs,
            "queries": captured.qs,
            "keys": captured.ks,
            "zs": captured.zs,
        }
        for one in sums:
            one.add(part.variables[one.manifold.variable], part.mask, kinds)
    return {one.manifold.name: one.means() for one in sums}
