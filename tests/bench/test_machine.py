"""What a measurement says of the machine it ran on."""

import pytest
import torch
import transformer_lens
import transformers

import circuitkeep
from circuitkeep.bench import machine
from circuitkeep.bench.machine import describe_machine, find_device, processor


def test_description(monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "1")
    found = describe_machine(torch.device("cpu"))
    assert found["huge pages"] == "on"
    assert found["torch"] == torch.__version__
    assert found["transformers"] == transformers.__version__
    assert found["transformer_lens"].startswith("4.")
    assert transformer_lens is not None
    assert found["circuitkeep"] == circuitkeep.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["device"] == f"cpu ({processor()})"


def test_processor(tmp_path, monkeypatch):
    listing = tmp_path / "cpuinfo"
    listing.write_text("processor\t: 0\nmodel\t\t: 7\nmodel name\t: Abacus 3: wooden\n")
    monkeypatch.setattr(machine, "Path", lambda path: listing)
    assert processor() == "Abacus 3: wooden"
    listing.unlink()
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "abacus")
    assert processor() == "abacus"


def test_device(monkeypatch):
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cuda") == torch.device("cuda")
    assert find_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ValueError, match=r"device='cuda:2': torch .* sees 2 CUDA device\(s\)"):
        find_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ValueError, match=r"device='cuda': torch .* sees no CUDA device here"):
        find_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "mps", "meta", ""])
def test_unknown_device(name):
    with pytest.raises(ValueError, match=f"device='{name}': choose cpu, cuda or cuda:NUMBER"):
        find_device(name)
