"""Fine-tune a model on a text by TRL's `SFTTrainer`, keeping a circuit.

python scripts/trl_sft.py MODEL CIRCUIT.yaml TEXT OUTPUT [STEPS]
"""

import sys

from datasets import load_dataset
from torch.cuda import is_available
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from circuitkeep.integrations import CircuitGuard
from circuitkeep.integrations.hf import guarded


def main(model: str, circuit: str, text: str, output: str, steps: str = "100") -> None:
    """Train and save."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.bos_token
    trainer = guarded(SFTTrainer, CircuitGuard(circuit, weight=1.0))(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=SFTConfig(output, max_steps=int(steps), report_to=[], use_cpu=not is_available()),
        train_dataset=load_dataset("text", data_files=text, split="train"),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
