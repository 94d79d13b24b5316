"""The README's first code is run as it stands."""

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from circuitkeep.capture.models import build_embedded
from circuitkeep.circuits import Circuit, Head, Role, save_circuit

README = Path(__file__).parents[1] / "README.md"


class TheirModule(LightningModule):
    def __init__(self):
        super().__init__()
        self.lm = build_embedded(0)

    def training_step(self, batch, batch_idx):
        return self.lm(input_ids=batch, labels=batch).loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*smaller than the logging interval")
@pytest.mark.filterwarnings("ignore:.*is not logged")  # an untrained model has no effect to keep
def test_the_first_code_of_the_readme_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[:1]
    lines = [line for line in code.splitlines() if line.strip() and "import" not in line]
    assert len(lines) <= 5
    spec = {"_target_": "circuitkeep.probes.RepeatedTokens", "exclude": [1]}
    role = Role("induction", (Head(1, 0),))
    save_circuit(Circuit("induction", (role,), spec, "accuracy", "test"), "induction.yaml")
    module, rows = TheirModule(), torch.randint(2, 64, (64, 16))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    names = {"my_module": module, "my_data": DataLoader(rows, batch_size=16)}
    exec(compile(code, str(README), "exec"), names)

    assert any(not torch.equal(before[k], v) for k, v in module.state_dict().items())
    assert len(names["monitor"].history) >= 1
    assert list(tmp_path.rglob("induction-*.safetensors"))
