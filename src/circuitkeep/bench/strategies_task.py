"""What the strategies suite trains, and the gradient it should have: small models, plain torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from lightning import LightningModule
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
)
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from circuitkeep.bench.strategies_models import build_tiny, layers_of
from circuitkeep.capture import find_model
from circuitkeep.circuits import Circuit, Head, Manifold, Role

BATCH_ROWS, BATCH_TOKENS, VOCAB = 8, 10, 32
LEARNING_RATE = 0.05


def circuit(number: int) -> Circuit:
    """The first or the second guarded circuit: other heads, other lengths of the rows."""
    induction, previous = ([Head(1, 0), Head(1, 1)], [Head(0, 3)])
    if number:
        induction, previous = [Head(1, 2)], [Head(0, 0), Head(0, 1)]
    return Circuit(
        f"guarded-{number}",
        (Role("induction", tuple(induction)), Role("previous-token", tuple(previous))),
        {
            "_target_": "circuitkeep.probes.RepeatedTokens",
            "length": 12 + 4 * number,
            "segment": [3, 4 + number],
            "prefix": [0, 1],
        },
        "accuracy",
        "made up for measuring",
        manifolds=(Manifold("place", "position", number, (1, 11)),),
    )


@dataclass(frozen=True)
class TaskSettings:
    """How the module in training is built and what it does.

    Attributes:
        model: ``gpt2`` (fused q, k, v; tied embeddings), ``llama`` (grouped queries) or
            ``bridge`` (a TransformerBridge around such a Llama).
        returns: What `training_step` returns: ``tensor``, ``dict`` or ``none`` (every other time).
        optimizers: 0 under automatic optimization, else how many under manual optimization.
        dropout: Everywhere in the model.
        tied: Whether the unembedding is the embedding.
        checkpointing: "", ``transformers`` (its own) or ``torch`` (its wrapper around each layer,
            which is what FSDP's ``activation_checkpointing_policy`` applies); not reentrant.
        compiled: Whether `torch.compile` wraps the model.
        lora: Whether peft trains adapters in the place of the weights.
        frozen: Whether the embedding and the first layer's MLP are not trained.
        wrap_model: Under FSDP, whether the model itself is wrapped beside its layers.
        split_heads: Under tensor parallelism, whether the heads are shared out, not only the MLPs.
    """

    model: str = "gpt2"
    returns: str = "tensor"
    optimizers: int = 0
    dropout: float = 0.0
    tied: bool = False
    checkpointing: str = ""
    compiled: bool = False
    lora: bool = False
    frozen: bool = False
    wrap_model: bool = False
    split_heads: bool = False


def build_model(settings: TaskSettings, seed: int) -> nn.Module:
    """The language model of `settings`; the same seed gives the same weights."""
    model = build_tiny(settings.model, seed, VOCAB, settings.dropout, settings.tied)
    if settings.frozen:
        frozen = [model.get_input_embeddings(), layers_of(model)[0].mlp]
        for module in frozen:
            module.requires_grad_(False)
    if settings.lora:
        from peft import LoraConfig, get_peft_model

        targets = ["c_attn"] if settings.model == "gpt2" else ["q_proj", "k_proj", "v_proj"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = get_peft_model(
                model,
                LoraConfig(
                    r=4,
                    target_modules=targets,
                    init_lora_weights=False,
                    fan_in_fan_out=settings.model == "gpt2",
                    bias="none",
                ),
            )
    if settings.checkpointing == "transformers":
        find_model(model).gradient_checkpointing_enable(  # type: ignore[operator]
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    if settings.checkpointing == "torch":
        layer = type(layers_of(find_model(model))[0])
        apply_activation_checkpointing(model, check_fn=lambda module: isinstance(module, layer))
    return model.train()


class Task(LightningModule):
    """A module that knows nothing of circuits: next-token loss, gradient descent."""

    def __init__(self, settings: TaskSettings, seed: int) -> None:
        super().__init__()
        self.settings = settings
        self.net: Any = build_model(settings, seed)
        if settings.compiled:
            self.net = torch.compile(self.net, backend="aot_eager")
        self.automatic_optimization = not settings.optimizers
        self.recorded = Recorded()
        self.sharded = False

    @property
    def language_model(self) -> Any:
        """The Hugging Face model or bridge, whatever wraps it."""
        return find_model(self)

    def configure_model(self) -> None:
        """Shard by `fully_shard`, under the strategy that leaves that to the module."""
        mesh = getattr(self, "_device_mesh", None)
        if mesh is None or self.sharded:
            return
        self.sharded = True
        model = self.language_model
        for layer in layers_of(model):
            if mesh["tensor_parallel"].size() > 1:
                plan = _split("mlp", ("gate_proj", "up_proj"), "down_proj")
                if self.settings.split_heads:
                    plan |= _split("self_attn", ("q_proj", "k_proj", "v_proj"), "o_proj")
                parallelize_module(layer, mesh["tensor_parallel"], plan)
            fully_shard(layer, mesh=mesh["data_parallel"])
        fully_shard(model, mesh=mesh["data_parallel"])

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """The loss of `settings.returns`; under manual optimization, every optimizer steps."""
        returns = self.settings.returns
        if returns == "none" and batch_idx % 2:
            return None
        self.recorded.batches.append(batch_idx)
        if self.automatic_optimization:
            loss = task_loss(self.net, batch[0], self.settings)
            return {"loss": loss, "more": 1} if returns == "dict" else loss
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for _ in optimizers:  # one backward pass for each
            self.manual_backward(task_loss(self.net, batch[0], self.settings))
        self.recorded.keep(self)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Run the model, so that other callbacks may exchange its weights around it."""
        self.log("val", task_loss(self.net, batch[0], self.settings), sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Gradient descent that records; one for each share of the parameters."""
        trained = [p for p in self.parameters() if p.requires_grad]
        count = max(self.settings.optimizers, 1)
        return [RecordingSGD(trained[number::count], self) for number in range(count)]


def _split(module: str, first: Sequence[str], last: str) -> dict[str, Any]:
    return {
        **{f"{module}.{name}": ColwiseParallel() for name in first},
        f"{module}.{last}": RowwiseParallel(),
    }


def task_loss(net: Any, tokens: Int[Tensor, "batch pos"], settings: TaskSettings) -> Tensor:
    """Mean next-token loss, in nats."""
    if settings.model == "bridge":
        logits = net(tokens)
    else:
        logits = net(input_ids=tokens, use_cache=False).logits
    logits = logits[:, :-1].flatten(0, 1).float()
    return nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())


class RecordingSGD(torch.optim.SGD):
    """Gradient descent with momentum that keeps weights and gradients as they are when it steps.

    Accumulated, clipped and unscaled, that is.
    """

    def __init__(self, parameters: list[nn.Parameter], task: Task) -> None:
        super().__init__(parameters, lr=LEARNING_RATE, momentum=0.9)
        self.task = task

    def step(self, closure: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Run the closure, keep what there is, step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.task.automatic_optimization:
            self.task.recorded.keep(self.task)
        super().step()
        return loss


@dataclass(frozen=True)
class Step:
    """One optimizer step: the batches it came of, and whole weights and gradients by name."""

    batches: tuple[int, ...]
    weights: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor]


class Recorded:
    """The optimizer steps of a training; in every process, since gathering takes them all."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.steps: list[Step] = []

    def keep(self, task: Task) -> None:
        """Record a step; nothing, if every batch since the last one was skipped."""
        if not self.batches:
            return
        root = task.trainer.strategy.model
        if isinstance(root, FullyShardedDataParallel):
            with FullyShardedDataParallel.summon_full_params(
                root, with_grads=True, writeback=False
            ):
                weights, gradients = whole(task)
        else:
            weights, gradients = whole(task)
        self.steps.append(Step(tuple(self.batches), weights, gradients))
        self.batches = []


def plain_name(name: str) -> str:
    """The name of a parameter without those of wrappers."""
    for wrapper in ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module."):
        name = name.replace(wrapper, "")
    return name


def whole(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights and gradients by name, shards joined; every process that holds one must call this."""
    weights, gradients = {}, {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        name = plain_name(name)
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        weights[name], gradients[name] = (
            (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
            for value in (parameter, grad)
        )
    return weights, gradients


def batches(count: int) -> Int[Tensor, "batch row pos"]:
    """The global batches."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, VOCAB, (count, BATCH_ROWS, BATCH_TOKENS), generator=generator)
