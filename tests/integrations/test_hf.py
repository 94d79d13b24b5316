import json
import warnings

import pytest
import torch
from accelerate import DistributedType
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from circuitkeep.circuits import Head
from circuitkeep.integrations import CircuitGuard
from circuitkeep.integrations.hf import guarded

from .conftest import check_same
from .shared import CIRCUIT, SETTINGS, Rows, arguments, by_hf, rows


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_gradient_is_the_callbacks(
    tmp_path, accumulate, held, expected, model_of, word_tokenizer
):
    options = {"gradient_accumulation_steps": accumulate}
    with_penalty = by_hf(tmp_path, model_of(), word_tokenizer, held(), **options)
    without = by_hf(tmp_path, model_of(), word_tokenizer, **options)
    added = [one - other for one, other in zip(with_penalty, without, strict=True)]
    check_same(f"Trainer, accumulation {accumulate}", added, expected)


def test_two_guards_add_up(tmp_path, held, model_of, word_tokenizer):
    """They share a forward pass."""
    heads = {"induction": [Head(1, 2)], "previous-token": [Head(0, 0)]}
    other = CIRCUIT.with_heads(heads, "other")
    path = tmp_path / "other.st"
    CircuitGuard(other, reference=path, tokenizer=word_tokenizer, **SETTINGS).penalty(model_of(0))

    def guards():
        second = CircuitGuard(other, reference=path, **SETTINGS)
        second.load_state_dict({"reference": str(path), "calls": 0})
        return held(), second

    def run(*chosen):
        return by_hf(tmp_path, model_of(), word_tokenizer, *chosen)

    both, first, second, none = run(*guards()), run(guards()[0]), run(guards()[1]), run()
    added = [one + two - 2 * free for one, two, free in zip(first, second, none, strict=True)]
    check_same("two guards", [one - free for one, free in zip(both, none, strict=True)], added)


def train(folder, model, tokenizer, *guards, resume=None, **options):
    trainer = guarded(Trainer, *guards)(
        model=model,
        args=TrainingArguments(**arguments(folder, **{"learning_rate": 0.01, **options})),
        train_dataset=Rows(rows()),
        eval_dataset=Rows(rows(4)),
        processing_class=tokenizer,
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, torch.cat([p.detach().flatten() for p in model.parameters()])


def new_guard(folder, **options):
    return CircuitGuard(CIRCUIT, reference=folder / "base.st", **{**SETTINGS, **options})


def test_weight_0_changes_no_bit(tmp_path, model_of, word_tokenizer):
    _, free = train(tmp_path, model_of(), word_tokenizer)
    _, same = train(tmp_path, model_of(), word_tokenizer, new_guard(tmp_path, weight=0.0))
    _, held = train(tmp_path, model_of(), word_tokenizer, new_guard(tmp_path))
    assert torch.equal(same, free)
    assert not torch.equal(held, free)


def test_penalties_are_logged_and_evaluations_have_none(tmp_path, held, model_of, word_tokenizer):
    options = {"logging_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 0.0}
    logs = []
    for guards in ([held()], []):
        trainer, _ = train(tmp_path, model_of(), word_tokenizer, *guards, **options)
        logs.append({key: x for log in trainer.state.log_history for key, x in log.items()})
    guarded_logs, free = logs
    assert guarded_logs["eval_loss"] == free["eval_loss"]
    assert guarded_logs["loss"] == free["loss"], "the task's alone"
    assert guarded_logs["circuit/guarded/penalty"] > 0
    names = {key for key in guarded_logs if key.startswith("circuit/")}
    assert names == {
        "circuit/guarded/penalty",
        "circuit/guarded/penalty/pattern",
        "circuit/guarded/penalty/behaviour",
    }
    assert set(guarded_logs) - set(free) == names


def test_mixed_precision_is_guarded(tmp_path, tiny_model, word_tokenizer):
    """Accelerate puts the autocast into the model's own forward pass, which the guard calls too."""
    model = tiny_model("llama").train()
    _, weights = train(tmp_path, model, word_tokenizer, new_guard(tmp_path), bf16=True)
    _, free = train(tmp_path, tiny_model("llama").train(), word_tokenizer, bf16=True)
    assert weights.isfinite().all()
    assert not torch.equal(weights, free)


# peft 0.21 asks for it by the name that transformers 5.23 has deprecated.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning")
def test_adapters_are_guarded(tmp_path, tiny_model, word_tokenizer):
    """Of peft: the base's weights stay, and the penalty reaches those of the adapters."""
    config = LoraConfig(r=2, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])

    def adapted(*guards):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = get_peft_model(tiny_model("llama").train(), config)
        return train(tmp_path, model, word_tokenizer, *guards, max_steps=4)[1]

    assert not torch.equal(adapted(new_guard(tmp_path)), adapted())


@pytest.mark.parametrize("by_name", [True, False])
def test_a_resumed_training_goes_on_exactly(tmp_path, by_name, model_of, word_tokenizer):
    """With a weight that finds itself, and a guard that knows nothing of the first run."""
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    settings = {"constraint": 0.9, "warmup_steps": 0}

    def guard():  # the reference is kept in the run's own folder
        return CircuitGuard(CIRCUIT, **{**SETTINGS, **settings})

    _, whole = train(tmp_path, model_of(), word_tokenizer, guard(), **options)
    assert list((tmp_path / "references").glob("guarded-*.safetensors"))
    checkpoint = tmp_path / "checkpoint-3"
    state = json.loads((checkpoint / "circuit_guard-guarded.json").read_text())
    assert set(state) == {"reference", "constraint", "calls"}
    if not by_name:
        (tmp_path / "checkpoint-6").rename(tmp_path / "later")
    resume = str(checkpoint) if by_name else True
    _, again = train(tmp_path, model_of(7), word_tokenizer, guard(), resume=resume, **options)
    assert torch.equal(again, whole)


def test_a_checkpoint_without_a_guard_is_told(tmp_path, model_of, word_tokenizer):
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    train(tmp_path, model_of(), word_tokenizer, **options)
    options["max_steps"] = 2
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*max_steps")
        with pytest.warns(UserWarning, match="holds no state of the guard for circuit 'guarded'"):
            train(
                tmp_path,
                model_of(),
                word_tokenizer,
                new_guard(tmp_path),
                resume=str(tmp_path / "checkpoint-1"),
                **options,
            )


def test_the_weight_falls_to_0_at_the_trainers_end(tmp_path, held, model_of, word_tokenizer):
    guard = held(decay="linear", warmup_steps=0)
    scales = []
    inner = guard.guard._penalty

    def penalty(backend, step, training, n_rows, scale):
        scales.append(scale)
        return inner(backend, step, training, n_rows, scale)

    guard.guard._penalty = penalty
    by_hf(tmp_path, model_of(), word_tokenizer, guard)
    assert scales == pytest.approx([0.7, 0.7 * 2 / 3, 0.7 / 3])


class Sharded:
    distributed_type = DistributedType.FSDP


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda trainer: setattr(trainer.args, "_n_gpu", 2), "several GPUs in one process"),
        (lambda trainer: setattr(trainer.args, "optim", "lomo"), "optim='lomo'"),
        (
            lambda trainer: setattr(trainer, "accelerator", Sharded()),
            "accelerate's FSDP",
        ),
    ],
)
def test_what_was_not_measured_is_refused(
    tmp_path, change, message, held, model_of, word_tokenizer
):
    trainer = guarded(Trainer, held())(
        model=model_of(),
        args=TrainingArguments(**arguments(tmp_path)),
        train_dataset=Rows(rows()),
        processing_class=word_tokenizer,
    )
    change(trainer)
    with pytest.raises(ValueError, match=message):
        trainer._begin()
