"""The suite ``trace``: attribution graphs, by transposed passes and by backward passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from circuitkeep.bench.gpt2 import CONTEXT, build_model
from circuitkeep.bench.memory import PeakMemory
from circuitkeep.bench.race import Contender, Race
from circuitkeep.bench.suites import RaceSuite
from circuitkeep.capture import Backend, attach
from circuitkeep.graphs.frozen import FrozenPass, freeze
from circuitkeep.graphs.sources import Sources, find_sources
from circuitkeep.graphs.trace import trace
from circuitkeep.transcoders import CrossLayerTranscoder, TranscoderConfig


@dataclass(frozen=True, kw_only=True)
class TraceSuite(RaceSuite):
    """Tracing one prompt on a random model with a random cross-layer transcoder.

    Attributes:
        length: Tokens of the prompt.
        features: Of the transcoder, per layer.
        active: How many of them are active per layer and position.
        batch: Targets that are traced at once.
        layers, heads, d_model, vocab: The model's shape.
        seed: Of all weights and of the prompt.

    Raises:
        ValueError: If a number is out of range, naming it.
    """

    length: int = 32
    features: int = 2048
    active: int = 8
    batch: int = 64
    layers: int = 12
    heads: int = 12
    d_model: int = 768
    vocab: int = 50_257
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length > CONTEXT:
            raise ValueError(f"bench.length must be at most {CONTEXT}, got {self.length}")
        if self.active > self.features:
            raise ValueError(
                f"bench.active={self.active}: a layer has {self.features} features to be active"
            )

    def races(self, device: torch.device) -> list[Race]:
        """See `RaceSuite.races`."""
        shape = (self.layers, self.heads, self.d_model, self.vocab)
        backend = attach(build_model(*shape, self.seed, device))
        generator = torch.Generator().manual_seed(self.seed)
        tokens = torch.randint(self.vocab, (self.length,), generator=generator).tolist()
        transcoder = self._transcoder(device)
        sources = find_sources(freeze(backend, torch.tensor(tokens, device=device)), transcoder)
        contenders = _contenders(backend, tokens, transcoder, self.batch)
        work = {"tokens": self.length, "features": len(sources), "batch": self.batch}
        del sources
        for contender in contenders:
            name = contender.name.split(":")[0]
            work[f"{name}_mflop"], work[f"{name}_mib"] = _cost(contender, device)
        few = _contenders(backend, tokens[:4], transcoder, self.batch)
        return [
            Race("tracing a prompt", work, contenders, few, "an edge of the graph", tolerance=1e-3)
        ]

    def _transcoder(self, device: torch.device) -> CrossLayerTranscoder:
        config = TranscoderConfig(
            self.layers, self.d_model, self.features, "topk", self.active, reads="normalized"
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            made = CrossLayerTranscoder(config)
            with torch.no_grad():
                for decoders in made.W_dec:
                    decoders.normal_(std=self.d_model**-0.5)
        return made.to(device)


@torch.no_grad()
def _cost(contender: Contender, device: torch.device) -> tuple[int, int]:
    """Millions of operations of matrix products, and MiB of tensors beyond those there before."""
    with FlopCounterMode(display=False) as counter:
        contender.run()
    with PeakMemory(device) as before:
        pass
    with PeakMemory(device) as memory:
        contender.run()
    return counter.get_total_flops() // 10**6, (memory.bytes - before.bytes) // 2**20


def _contenders(
    backend: Backend, tokens: list[int], transcoder: CrossLayerTranscoder, batch: int
) -> tuple[Contender, ...]:
    def ours() -> Tensor:
        graph = trace(backend, tokens, transcoder, batch=batch)
        is_feature = graph.of_kind("feature")
        return graph.edges[is_feature][:, is_feature]

    def by_autograd() -> Tensor:
        frozen = freeze(backend, torch.tensor(tokens, device=backend.device))
        return trace_by_autograd(find_sources(frozen, transcoder), batch)

    return (
        Contender(
            "ours: trace",
            "the transposed weights of every layer below a target, for a batch of targets; from "
            "the prompt to the whole graph, logits and errors included",
            ours,
        ),
        Contender(
            "autograd",
            "the published way: the frozen stream run once for a batch of copies of the prompt, "
            "then a backward pass per batch of targets; edges among features only",
            by_autograd,
        ),
    )


@torch.enable_grad()
def trace_by_autograd(sources: Sources, batch: int) -> Float[Tensor, "target source"]:
    """Edges among features by automatic differentiation, a backward pass per batch.

    Source:
        The procedure of https://github.com/decoderesearch/circuit-tracer, on this project's
        frozen pass.
    """
    frozen, active = sources.frozen, sources.active
    found = frozen.embedding.new_zeros(len(sources), len(sources))
    leaves, reads = _run(frozen, batch)
    for start in range(0, len(sources), batch):
        targets = torch.arange(start, min(start + batch, len(sources)))
        # From the highest layer of the batch down, not from the top.
        asked = torch.stack(
            [
                reads[layer][row, pos] @ reader
                for row, (layer, pos, reader) in enumerate(
                    zip(
                        active.layer[targets].tolist(),
                        active.pos[targets].tolist(),
                        active.readers[targets],
                        strict=True,
                    )
                )
            ]
        ).sum()
        gradients = torch.autograd.grad(asked, leaves, retain_graph=True, allow_unused=True)
        for gradient, written in zip(gradients[1:], sources.written, strict=True):
            if gradient is not None:
                own = written.contributions(gradient[: len(targets)])
                found[targets[:, None], written.features] += own
    return found


def _run(frozen: FrozenPass, batch: int) -> tuple[list[Tensor], list[Tensor]]:
    """Embedding and MLP outputs, and what every MLP reads of the stream that they make."""
    leaves = [
        value.expand(batch, -1, -1).clone().requires_grad_()
        for value in (frozen.embedding, *frozen.mlp_out)
    ]
    stream = leaves[0]
    reads = []
    for layer, leaf in enumerate(leaves[1:]):
        after = stream + frozen.attend(layer, stream) + frozen.head_constants[layer]
        reads.append(stream if frozen.parallel[layer] else after)
        stream = after + leaf
    return leaves, reads
