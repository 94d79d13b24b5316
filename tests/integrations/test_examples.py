"""The examples in scripts/ run as they stand."""

import importlib.util
import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from circuitkeep.circuits import save_circuit

from .shared import CIRCUIT, rows

SCRIPTS = Path(__file__).parents[2] / "scripts"
pytestmark = [
    # TRL 1.16 sets it under the name that transformers 5.23 has deprecated.
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:'pin_memory' argument is set:UserWarning"),
]
NAMES = ("bare_loop", "hf_trainer", "trl_sft", "trl_dpo", "trl_grpo")


@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains(tmp_path, monkeypatch, capsys, name, tiny_model, word_tokenizer):
    monkeypatch.chdir(tmp_path)
    model = tiny_model("llama")
    model.save_pretrained("model")
    word_tokenizer.save_pretrained("model")
    save_circuit(CIRCUIT, "circuit.yaml")
    texts = [" ".join(f"w{token}" for token in row) for row in rows(16).tolist()]
    Path("text").write_text("\n".join(texts))
    prompts = [" ".join(text.split()[:4]) for text in texts]
    Path("prompts").write_text("\n".join(prompts))
    pairs = zip(prompts, texts, texts[::-1], strict=True)
    lines = [json.dumps({"prompt": p, "chosen": f" {a}", "rejected": f" {b}"}) for p, a, b in pairs]
    Path("pairs").write_text("\n".join(lines))
    data = {"trl_dpo": "pairs", "trl_grpo": "prompts"}.get(name, "text")
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    script.main("model", "circuit.yaml", data, "output", "11")

    after = AutoModelForCausalLM.from_pretrained("output")
    changed = [
        not one.equal(other)
        for one, other in zip(model.parameters(), after.parameters(), strict=True)
    ]
    assert any(changed)
    assert list(Path("output").rglob("*reference*"))
    assert "circuit/guarded/penalty" in capsys.readouterr().out
    assert len((SCRIPTS / f"{name}.py").read_text().splitlines()) <= 40
