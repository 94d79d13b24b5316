"""Tiny models on disk, and the console command run in this process."""

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from circuitkeep.capture.models import build_embedded, save_model
from circuitkeep.cli import main

CIRCUIT = """\
name: {name}
source: a test
roles:
  {role}: [{head}]
  previous-token: [L0H1]
probe:
  _target_: circuitkeep.probes.RepeatedTokens
  exclude: [1]
  length: {length}
{behaviour}: accuracy
"""


@pytest.fixture(scope="session")
def circuit_file(tmp_path_factory):
    """Writes a circuit file, right unless told otherwise."""

    def write(**changes):
        content = {"name": "ind", "role": "induction", "head": "L1H0", "length": 32}
        path = tmp_path_factory.mktemp("circuit") / "ind.yaml"
        path.write_text(CIRCUIT.format(**{**content, "behaviour": "behaviour", **changes}))
        return path

    return write


@pytest.fixture(scope="session")
def models(tmp_path_factory, word_tokenizer, tiny_model):
    """A folder of model directories, by what is special about them."""
    import transformers as t

    folder = tmp_path_factory.mktemp("models")
    save_model(build_embedded(0), folder / "tiny")
    save_model(build_embedded(1), folder / "other")
    save_model(tiny_model("llama"), folder / "text", word_tokenizer)
    narrow = {"vocab_size": 64, "num_attention_heads": 2, "hidden_size": 32}
    save_model(t.BertForMaskedLM(t.BertConfig(**narrow, num_hidden_layers=1)), folder / "bert")
    t5 = t.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    save_model(t.T5ForConditionalGeneration(t5), folder / "t5")
    one_layer = t.LlamaConfig(**narrow, intermediate_size=32, num_hidden_layers=1, bos_token_id=0)
    save_model(t.LlamaForCausalLM(one_layer), folder / "one-layer")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs ``circuitkeep ARGUMENTS`` in `tmp_path`; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    # What seed_everything sets, is taken back.
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")
    monkeypatch.setenv("PL_SEED_WORKERS", "0")

    def run(*arguments):
        code = 0
        with torch.random.fork_rng():
            try:
                main([str(argument) for argument in arguments])
            except SystemExit as stop:
                code = stop.code
        assert not GlobalHydra.instance().is_initialized()
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture(scope="session")
def train(models, circuit_file):
    """The arguments of a training of three steps that measures and guards a circuit."""
    return (
        "train",
        f"model.path={models / 'tiny'}",
        "data=key_value",
        "data.train_rows=96",
        "data.val_rows=8",
        f"circuit={circuit_file()}",
        "penalty.pool_rows=16",
        "callbacks.monitor.rows=8",
        "callbacks.checkpoint.every_n_train_steps=1",
        "trainer.accelerator=cpu",
        "trainer.max_steps=3",
        "trainer.log_every_n_steps=1",
        "trainer.enable_progress_bar=false",
        "output=run",
    )
