"""Fine-tune a model on a text by a loop of one's own, keeping a circuit.

python scripts/bare_loop.py MODEL CIRCUIT.yaml TEXT OUTPUT [STEPS]
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from circuitkeep.integrations import CircuitGuard


def main(model_path: str, circuit: str, text: str, output: str, steps: str = "100") -> None:
    """Train and save."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5)
    lines = Path(text).read_text("utf-8").splitlines()
    reference = Path(output, "reference.safetensors")
    guard = CircuitGuard(circuit, weight=1.0, tokenizer=tokenizer, reference=reference)
    for step in range(int(steps)):
        row = tokenizer(lines[step % len(lines)], return_tensors="pt").input_ids
        loss = model(input_ids=row, labels=row).loss
        (loss + guard.penalty(model)).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            values = {key: round(value, 4) for key, value in guard.values().items()}
            print(f"step {step}: loss {loss.item():.3f}, {values}")
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main(*sys.argv[1:])
