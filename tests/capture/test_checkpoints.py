"""What trainings leave behind."""

import pickle
import shutil

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as sharded

from circuitkeep.capture.checkpoints import load_checkpoint
from circuitkeep.capture.fingerprints import fingerprint_model
from circuitkeep.capture.models import load_model, save_model


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "llama"
    save_model(tiny_model("llama"), path)
    return path


class Task(nn.Module):
    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)


def write_checkpoint(path, module):
    torch.save({"state_dict": module.state_dict(), "epoch": 1}, path)
    return path


def write_shards(path, module, **more):
    """As Lightning's FSDPStrategy lays them out."""
    sharded.save({"model": module.state_dict(), **more}, checkpoint_id=path, no_dist=True)
    torch.save({"epoch": 1, "global_step": 3}, path / "meta.pt")
    return path


def test_model_directories(folder, tmp_path):
    loaded = load_checkpoint(folder, base="unused")
    assert not loaded.training
    assert fingerprint_model(loaded) == fingerprint_model(load_model(folder))
    with pytest.raises(FileNotFoundError, match="there is no model directory at"):
        load_checkpoint(tmp_path / "nothing", base="unused")
    with pytest.raises(FileNotFoundError, match="no checkpoint file at"):
        load_checkpoint(tmp_path / "last.ckpt", base="unused")


@pytest.mark.parametrize("tied", [False, True])
def test_lightning_checkpoints(tmp_path, tiny_model, tied):
    base = tmp_path / "base"
    save_model(tiny_model("llama", tie_word_embeddings=tied), base)
    trained = tiny_model("llama", seed=1, tie_word_embeddings=tied)
    expected = fingerprint_model(trained)
    for name, module in {
        "task": Task(model=trained),
        "bare": trained,
        "deep": Task(net=Task(inner=trained), head=nn.Linear(2, 2)),
        "compiled": Task(model=torch.compile(trained, backend="eager")),
    }.items():
        path = write_checkpoint(tmp_path / f"{name}.ckpt", module)
        assert fingerprint_model(load_checkpoint(path, base)) == expected, name
    if tied:  # a writer may leave the second name of a tied weight out
        state = {f"model.{k}": v for k, v in trained.state_dict().items() if "lm_head" not in k}
        torch.save({"state_dict": state}, tmp_path / "short.ckpt")
        loaded = load_checkpoint(tmp_path / "short.ckpt", base)
        assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
        assert fingerprint_model(loaded) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 1}, r"the checkpoint lacks model\.layers\.1\."),
        ({"num_hidden_layers": 3}, r"the model lacks model\.layers\.2\."),
        ({"intermediate_size": 16}, "size mismatch"),
    ],
    ids=str,
)
def test_a_checkpoint_of_another_architecture(folder, tmp_path, tiny_model, changes, message):
    path = write_checkpoint(tmp_path / "x.ckpt", Task(model=tiny_model("llama", **changes)))
    with pytest.raises(ValueError, match=f"(?s)does not fit the architecture of .*{message}"):
        load_checkpoint(path, folder)


def test_other_errors_of_checkpoints(folder, tmp_path, tiny_model):
    path = tmp_path / "x.ckpt"
    state = {f"model.{k}": v for k, v in tiny_model("llama").state_dict().items()}
    del state["model.lm_head.weight"]  # which is not tied here
    torch.save({"state_dict": state}, path)
    with pytest.raises(ValueError, match=r"the checkpoint lacks lm_head\.weight"):
        load_checkpoint(path, folder)
    both = Task(policy=tiny_model("llama"), reference=tiny_model("llama", seed=1))
    with pytest.raises(ValueError, match=r"holds 2 models .*\('policy', 'reference'\)"):
        load_checkpoint(write_checkpoint(path, both), folder)
    for content in (b"", b"nothing"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a Lightning checkpoint"):
            load_checkpoint(path, folder)
    torch.save({"weights": {}}, path)
    with pytest.raises(ValueError, match="is not a Lightning checkpoint"):
        load_checkpoint(path, folder)


@pytest.mark.filterwarnings("ignore:torch.distributed is .*intent is to save")
@pytest.mark.parametrize("tied", [False, True])
def test_checkpoints_in_shards(tmp_path, tiny_model, tied):
    base = tmp_path / "base"
    save_model(tiny_model("llama", tie_word_embeddings=tied), base)
    trained = tiny_model("llama", seed=1, tie_word_embeddings=tied)
    task = Task(model=trained, head=nn.Linear(2, 2))
    momentum = {f"model.{name}.exp_avg": torch.zeros(3) for name in trained.state_dict()}
    path = write_shards(tmp_path / "step=3.ckpt", task, optimizer_0={"state": momentum, "lr": 0.1})
    assert fingerprint_model(load_checkpoint(path, base)) == fingerprint_model(trained)


@pytest.mark.filterwarnings("ignore:torch.distributed is .*intent is to save")
def test_shards_that_do_not_fit(folder, tmp_path, tiny_model):
    for number, (changes, message) in enumerate(
        [
            ({"num_hidden_layers": 1}, r"the checkpoint lacks model\.layers\.1\."),
            ({"num_hidden_layers": 3}, r"the model lacks model\.layers\.2\."),
            ({"intermediate_size": 16}, "size mismatch"),
        ]
    ):
        other = Task(model=tiny_model("llama", **changes))
        path = write_shards(tmp_path / f"{number}.ckpt", other)
        with pytest.raises(ValueError, match=f"(?s)does not fit the architecture .*{message}"):
            load_checkpoint(path, folder)


@pytest.mark.filterwarnings("ignore:torch.distributed is .*intent is to save")
def test_an_index_that_would_run_code(folder, tmp_path, tiny_model):
    path = write_shards(tmp_path / "x.ckpt", Task(model=tiny_model("llama")))
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self):
            return trap.touch, ()

    (path / ".metadata").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"its index names builtins\.getattr"):
        load_checkpoint(path, folder)
    (path / ".metadata").write_bytes(b"")
    with pytest.raises(ValueError, match="no checkpoint in shards"):
        load_checkpoint(path, folder)
    assert not trap.exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_adapters(folder, tmp_path, tiny_model):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(load_model(folder), LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    path = tmp_path / "adapters"
    adapted.save_pretrained(path)
    expected = fingerprint_model(adapted.merge_and_unload())
    assert expected != fingerprint_model(load_model(folder))
    assert fingerprint_model(load_checkpoint(path, folder)) == expected

    other = tmp_path / "other"
    save_model(tiny_model("llama", num_hidden_layers=1), other)
    with pytest.raises(ValueError, match=r"the adapters in .* do not fit"):
        load_checkpoint(path, other)
    broken = tmp_path / "broken"
    shutil.copytree(path, broken)
    (broken / "adapter_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"the adapters in .* do not fit"):
        load_checkpoint(broken, folder)


def test_revisions_belong_to_hub_names(tmp_path, monkeypatch, tiny_model):
    asked = []

    def from_pretrained(name, **options):
        asked.append((name, options["revision"]))
        raise OSError("offline")

    monkeypatch.setattr("circuitkeep.capture.models.AutoConfig.from_pretrained", from_pretrained)
    for name in ("someone/model@v1.0", "gpt2"):
        with pytest.raises(ValueError, match="cannot load a model from"):
            load_checkpoint(name, "unused")
    local = tmp_path / "run@3"
    save_model(tiny_model("llama"), local)
    with pytest.raises(ValueError, match="offline"):
        load_checkpoint(local, "unused")
    assert asked == [("someone/model", "v1.0"), ("gpt2", "main"), (str(local), "main")]
