"""TRL's trainers, on a tiny model in float64, with no network."""

import copy

import pytest
from datasets import Dataset

pytest.importorskip("trl")

from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from circuitkeep.integrations.hf import guarded

from .conftest import check_same
from .shared import Gradients, arguments, rows

# TRL 1.16 sets it under the name that transformers 5.23 has deprecated.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.*is deprecated:FutureWarning"
)

WORDS = [[f"w{token}" for token in row] for row in rows().tolist()]
PROMPTS = [" ".join(words[:4]) for words in WORDS]
ANSWERS = [" " + " ".join(words[4:]) for words in WORDS]


def lengths(completions, **kwargs):
    return [float(len(set(one.split()))) for one in completions]


def sft(folder, model, tokenizer, guards, **options):
    return guarded(SFTTrainer, *guards)(
        model=model,
        args=SFTConfig(**arguments(folder, **options)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS, "completion": ANSWERS}),
        processing_class=tokenizer,
    )


def dpo(folder, model, tokenizer, guards, **options):
    pairs = {"prompt": PROMPTS, "chosen": ANSWERS, "rejected": ANSWERS[::-1]}
    return guarded(DPOTrainer, *guards)(
        model=model,
        ref_model=copy.deepcopy(model),
        args=DPOConfig(**arguments(folder, **options)),
        train_dataset=Dataset.from_dict(pairs),
        processing_class=tokenizer,
    )


def grpo(folder, model, tokenizer, guards, **options):
    return guarded(GRPOTrainer, *guards)(
        model=model,
        reward_funcs=lengths,
        args=GRPOConfig(**arguments(folder, num_generations=2, max_completion_length=5, **options)),
        train_dataset=Dataset.from_dict({"prompt": PROMPTS}),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("make", [sft, dpo, grpo])
def test_the_gradient_is_the_callbacks(
    tmp_path, make, accumulate, held, expected, model_of, word_tokenizer
):
    seen = []
    for guards in ([held()], []):
        gradients = Gradients()
        trainer = make(
            tmp_path,
            model_of(),
            word_tokenizer,
            guards,
            gradient_accumulation_steps=accumulate,
        )
        trainer.add_callback(gradients)
        trainer.train()
        seen.append(gradients.seen)
    assert max(task.abs().max() for task in seen[1]) > 0
    added = [one - other for one, other in zip(*seen, strict=True)]
    check_same(f"{make.__name__}, accumulation {accumulate}", added, expected)
