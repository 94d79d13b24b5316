"""Teach a model preferences by TRL's `DPOTrainer`, keeping a circuit.

python scripts/trl_dpo.py MODEL CIRCUIT.yaml PAIRS.jsonl OUTPUT [STEPS]

Each line of the pairs has a prompt, what is chosen and what is rejected.
"""

import sys

from datasets import load_dataset
from torch.cuda import is_available
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer

from circuitkeep.integrations import CircuitGuard
from circuitkeep.integrations.hf import guarded


def main(model: str, circuit: str, pairs: str, output: str, steps: str = "100") -> None:
    """Train and save."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.bos_token
    trainer = guarded(DPOTrainer, CircuitGuard(circuit, weight=1.0))(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=DPOConfig(output, max_steps=int(steps), report_to=[], use_cpu=not is_available()),
        train_dataset=load_dataset("json", data_files=pairs, split="train"),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
