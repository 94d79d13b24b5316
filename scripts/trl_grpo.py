"""Reward a model for words that it does not repeat, by TRL's `GRPOTrainer`, keeping a circuit.

python scripts/trl_grpo.py MODEL CIRCUIT.yaml PROMPTS OUTPUT [STEPS]

Each line of the prompts is one.
"""

import sys

from datasets import load_dataset
from torch.cuda import is_available
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from circuitkeep.integrations import CircuitGuard
from circuitkeep.integrations.hf import guarded


def distinct(completions: list[str], **_: object) -> list[float]:
    """The share of words that are new."""
    return [len(set(one.split())) / max(1, len(one.split())) for one in completions]


def main(model: str, circuit: str, prompts: str, output: str, steps: str = "100") -> None:
    """Train and save."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.bos_token
    data = load_dataset("text", data_files=prompts, split="train").rename_column("text", "prompt")
    sizes = {"max_steps": int(steps), "max_completion_length": 16}
    config = GRPOConfig(output, **sizes, report_to=[], use_cpu=not is_available())
    guard = CircuitGuard(circuit, weight=1.0)
    model = AutoModelForCausalLM.from_pretrained(model)
    trainer = guarded(GRPOTrainer, guard)(model, distinct, config, data, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
