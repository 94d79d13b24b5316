"""A task, a circuit and two trainers; run as a script, one of several processes: see `main`."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.integrations import CircuitGuard
from circuitkeep.integrations.hf import guarded

WEIGHT = 0.7
CIRCUIT = Circuit(
    "guarded",
    (Role("induction", (Head(1, 0), Head(1, 1))), Role("previous-token", (Head(0, 3),))),
    {
        "_target_": "circuitkeep.probes.RepeatedTokens",
        "length": 12,
        "segment": [3, 4],
        "prefix": [0, 1],
    },
    "accuracy",
    "made up",
)
SETTINGS = {"rows_per_step": 3, "pool_rows": 8, "warmup_steps": 2}


def rows(count=24):
    return torch.randint(0, 32, (count, 10), generator=torch.Generator().manual_seed(5))


def task_loss(model, tokens):
    logits = model(input_ids=tokens).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


class Gradients(TrainerCallback):
    """Keeps the gradient of every optimizer step of a Hugging Face trainer."""

    def __init__(self):
        self.seen = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.seen.append(gradient(model))


def gradient(model):
    """All gradients as one vector; zeros where there is none."""
    grads = [(p, p.grad) for p in model.parameters()]
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in grads])


def guard_of(reference=None, resumed=True, **options):
    """As the callback in `conftest.fit`, with the base's reference."""
    guard = CircuitGuard(CIRCUIT, reference=reference, **{**SETTINGS, "weight": WEIGHT, **options})
    if resumed:
        guard.load_state_dict({"reference": str(reference), "calls": 0})
    return guard


def arguments(folder, **options):
    """Of a Hugging Face trainer of three steps that changes no weight."""
    options = {
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "learning_rate": 0.0,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    return {"output_dir": str(folder), **options}


class Rows(torch.utils.data.Dataset):
    """Token rows as a model wants them."""

    def __init__(self, tokens):
        self.tokens = tokens

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


def by_hf(folder, model, tokenizer, *guards, **options):
    """The gradient of each optimizer step under Hugging Face's trainer."""
    gradients = Gradients()
    guarded(Trainer, *guards)(
        model=model,
        args=TrainingArguments(**arguments(folder, **options)),
        train_dataset=Rows(rows()),
        processing_class=tokenizer,
        callbacks=[gradients],
    ).train()
    return gradients.seen


def by_loop(model, guard, accumulate=1, steps=3, rank=0, world=1):
    """The gradient of each optimizer step of a loop of one's own; `model` may be wrapped."""
    seen = []
    batches = rows().split(2)[rank::world]
    for number in range(steps * accumulate):
        logits = model(input_ids=batches[number]).logits[:, :-1]
        target = batches[number][:, 1:].flatten()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target)
        if guard is not None:
            loss = loss + guard.penalty(model)
        (loss / accumulate).backward()
        if (number + 1) % accumulate == 0:
            seen.append(gradient(model))
            model.zero_grad()
    return seen


KINDS = ("loop", "loop, unused", "loop twice", "hf", "hf twice", "hf, half trained")


def main():
    """Train in one of two processes by each of `KINDS`, and write what the penalty added."""
    folder, reference = Path(sys.argv[1]), sys.argv[2]
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    found = {kind: added(kind, folder, reference, tokenizer) for kind in KINDS}
    torch.save(found, folder / f"{os.environ['RANK']}.pt")
    distributed.destroy_process_group()


class HalfTrained(LlamaForCausalLM):
    """Its loss is of what the first layer makes; the second is used by nobody but the guard."""

    def forward(self, input_ids, labels=None, **kwargs):
        if labels is None:
            return super().forward(input_ids, **kwargs)
        hidden = self.model(input_ids, output_hidden_states=True).hidden_states[1]
        return {"loss": hidden.square().mean()}


def added(kind, folder, reference, tokenizer):
    """What the penalty adds to the gradient of each optimizer step, in this process."""
    accumulate = 2 if "twice" in kind else 1
    seen = []
    for with_guard in (True, False):
        of = HalfTrained if "half" in kind else AutoModelForCausalLM
        model = of.from_pretrained(folder / "model", dtype=torch.float64).train()
        options = {"tokenizer": tokenizer, "accumulate": 1 if "hf" in kind else accumulate}
        guard = guard_of(reference, **options) if with_guard else None
        if "hf" in kind:
            options = {"gradient_accumulation_steps": accumulate, "ddp_backend": "gloo"}
            guards = [] if guard is None else [guard]
            seen.append(by_hf(folder / kind, model, tokenizer, *guards, **options))
            continue
        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
        wrapped = torch.nn.parallel.DistributedDataParallel(
            model, find_unused_parameters="unused" in kind
        )
        place = distributed.get_rank(), distributed.get_world_size()
        seen.append(by_loop(wrapped, guard, accumulate, 3, *place))
    return [one - other for one, other in zip(*seen, strict=True)]


if __name__ == "__main__":
    main()
