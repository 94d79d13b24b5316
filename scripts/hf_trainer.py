"""Fine-tune a model on a text by Hugging Face's `Trainer`, keeping a circuit.

python scripts/hf_trainer.py MODEL CIRCUIT.yaml TEXT OUTPUT [STEPS]
"""

import sys

from datasets import load_dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
    TrainingArguments,
)

from circuitkeep.integrations import CircuitGuard
from circuitkeep.integrations.hf import guarded


def main(model: str, circuit: str, text: str, output: str, steps: str = "100") -> None:
    """Train and save."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.bos_token
    lines = load_dataset("text", data_files=text, split="train")
    rows = lines.map(lambda line: tokenizer(line["text"]), remove_columns="text")
    trainer = guarded(Trainer, CircuitGuard(circuit, weight=1.0))(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=TrainingArguments(output, max_steps=int(steps), logging_steps=10, report_to=[]),
        train_dataset=rows,
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])
