"""``circuitkeep trace``: what it prints and writes, and what it refuses."""

import json
import re

import pytest
import torch

from circuitkeep.capture.fingerprints import fingerprint_model
from circuitkeep.capture.models import load_model
from circuitkeep.cli.application import _choice, _quoted
from circuitkeep.graphs import Graph
from circuitkeep.graphs.influence import prune
from circuitkeep.transcoders import CrossLayerTranscoder, TranscoderConfig
from circuitkeep.transcoders.storage import save_transcoder

PROMPT = "w1 w2 w3 w1 w2"
SMALL = ("contexts.rows=4", "contexts.length=12", "output=traced")


@pytest.fixture(scope="session")
def transcoders(tmp_path_factory, models):
    """Folders of transcoders: of the text model, of other weights, of another width."""
    folder = tmp_path_factory.mktemp("transcoders")
    fingerprint = fingerprint_model(load_model(models / "text"))

    def save(name, width=32, **about):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            transcoder = CrossLayerTranscoder(TranscoderConfig(2, width, 12))
            for decoders in transcoder.W_dec:
                torch.nn.init.normal_(decoders, std=0.1)
        save_transcoder(transcoder, folder / name, {"model": name, **about})

    save("own", fingerprint=fingerprint)
    save("others", fingerprint="another")
    save("narrow", width=16)
    return folder


@pytest.fixture
def refused(command, tmp_path):
    """Runs the command, which must say one sentence that matches, and write nothing."""

    def check(wanted, *arguments):
        code, _, stderr = command("trace", *arguments)
        (line,) = stderr.splitlines()
        assert code == 2
        assert line.startswith("circuitkeep: ")
        assert re.search(wanted, line), line
        assert not list(tmp_path.rglob("graph*"))

    return check


def test_a_prompt_is_traced(command, models, transcoders, tmp_path):
    code, out, err = command(
        *("trace", PROMPT, f"model.path={models / 'text'}", f"transcoder={transcoders / 'own'}"),
        *("prune.nodes=0.9", *SMALL),
    )
    assert code == 0, err
    folder = tmp_path / "traced"
    graph = Graph.load(folder / "graph.safetensors")
    assert graph.tokens == (32, 1, 2, 3, 1, 2)  # BOS is put in front
    assert graph.words == ("<s>", "w1", "w2", "w3", "w1", "w2")
    assert graph.model == str(models / "text")
    assert graph.transcoder == str(transcoders / "own")
    assert any(node.kind == "feature" for node in graph.nodes)
    for heading in ("What may come next", "Strongest edges into", "Most influential", "explains"):
        assert heading in out
    assert graph.logit_words[0] in out
    assert re.search(r"completeness +\d+%", out)
    assert "without a transcoder" not in out
    frontend = json.loads((folder / "graph.json").read_text())
    pruned = prune(graph, 0.9, 0.98)
    assert len(frontend["links"]) == pruned.edges.sum()
    assert frontend["metadata"]["prompt_tokens"] == list(graph.words)
    assert frontend["metadata"]["pruning_settings"] == {
        "node_threshold": 0.9,
        "edge_threshold": 0.98,
    }
    labels = [n["clerp"] for n in frontend["nodes"] if "transcoder" in n["feature_type"]]
    assert labels
    assert all(re.fullmatch(r"promotes \S+, \S+, \S+", label) for label in labels)
    listed = json.loads((folder / "graph-metadata.json").read_text())["graphs"]
    assert listed == [frontend["metadata"]]
    page = (folder / "index.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert len(data["nodes"]) == pruned.nodes.sum()
    assert len(data["heads"]) > 0
    known = [reading for reading in data["features"].values() if reading["contexts"]]
    assert known
    assert all(len(reading["promoted"]) == 8 for reading in known)
    assert not list(folder.rglob(".*"))


def test_the_same_command_gives_the_same_files(command, models, transcoders, tmp_path):
    where = (f"model.path={models / 'text'}", f"transcoder={transcoders / 'own'}")
    written = []
    for _ in range(2):
        assert command("trace", PROMPT, *where, *SMALL)[0] == 0
        written.append({p.name: p.read_bytes() for p in (tmp_path / "traced").iterdir()})
    assert written[0] == written[1]
    assert len(written[0]) == 4


def test_without_a_transcoder_mlps_are_errors(command, models, tmp_path):
    code, out, err = command(
        "trace", PROMPT, f"model.path={models / 'text'}", "bos=false", "heads=0", "output=traced"
    )
    assert code == 0, err
    assert "without a transcoder, all that MLPs add is error: set transcoder=FOLDER" in out
    graph = Graph.load(tmp_path / "traced/graph.safetensors")
    assert graph.tokens == (1, 2, 3, 1, 2)
    assert {node.kind for node in graph.nodes} == {"embedding", "error", "logit"}
    assert '"heads":{}' in (tmp_path / "traced/index.html").read_text()


def test_a_model_without_text_takes_token_numbers(command, models, tmp_path):
    code, _, err = command(
        "trace", "prompt=[5,6,7,5]", f"model.path={models / 'tiny'}", "output=traced"
    )
    assert code == 0, err
    graph = Graph.load(tmp_path / "traced/graph.safetensors")
    assert graph.tokens[-4:] == (5, 6, 7, 5)
    assert graph.words == tuple(map(str, graph.tokens))


def test_outputs_can_be_chosen(command, models, tmp_path):
    where = (f"model.path={models / 'text'}", "heads=0", "output=traced")
    code, _, err = command("trace", PROMPT, *where, "logits=[w7,12]")
    assert code == 0, err
    graph = Graph.load(tmp_path / "traced/graph.safetensors")
    assert sorted(graph.logit_words) == ["w12", "w7"]


@pytest.mark.parametrize(
    "prompt",
    ["it's", "a = b", "x\\", "${foo} {a}", "line\nbreak", " one, [two]", "", "a\\'b", "12", "null"],
)
def test_a_prompt_reaches_the_config_as_it_was(prompt):
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    (override,) = _choice("trace", [prompt])
    parsed = OverridesParser.create().parse_override(override)
    assert parsed.key_or_group == "prompt"
    assert OmegaConf.create({"prompt": parsed.value()}).prompt == prompt


def test_what_is_no_prompt_is_left_as_it_is():
    for arguments in ([], ["prompt=x"], ["model.path=x", "y"], ["--cfg", "job"], ["+a=1"]):
        assert _choice("trace", arguments) == arguments
    assert _choice("watch", ["it's"]) == [f"run={_quoted(chr(39).join(['it', 's']))}"]


def test_what_is_refused(refused, models, transcoders, as_bridge):
    text = f"model.path={models / 'text'}"
    own = f"transcoder={transcoders / 'own'}"
    refused("prompt is not set: add the text, as in `circuitkeep trace", text)
    refused("model.path is not set", PROMPT)
    refused("the prompt is empty", "", text)
    refused(r"the prompt is empty \('  '\)", "  ", text)
    refused("a prompt of 25 tokens: give 1 to 24, the model's context", " ".join(["w1"] * 24), text)
    refused("no tokenizer: set model.tokenizer=PATH, or give", PROMPT, f"model.path={models}/tiny")
    refused("99 is outside the model's vocabulary", "prompt=[3,99]", text)
    refused("prompt: 'w1' is no token number", "prompt=[3,w1]", text)
    refused("there is no folder of a transcoder at nowhere", PROMPT, text, "transcoder=nowhere")
    refused("holds no transcoder", PROMPT, text, f"transcoder={models / 'text'}")
    others = f"transcoder={transcoders / 'others'}"
    refused(r"trained on another model \(others\); same_model=false", PROMPT, text, others)
    narrow = f"transcoder={transcoders / 'narrow'}"
    refused("2 layers of width 16, this one has 2 of 32", PROMPT, text, narrow)
    refused("there is no key 'shar'; did you mean 'share'", PROMPT, text, "shar=0.5")
    refused("share=2.0: give a share", PROMPT, text, "share=2")
    refused("nodes=0.0: give the share to keep", PROMPT, text, own, "prune.nodes=0")
    refused("share must be a number, got 'much'", PROMPT, text, "share=much")
    refused("heads=-1: give a whole number from 0 on", PROMPT, text, "heads=-1")
    refused("contexts.rows=many: give a whole number", PROMPT, text, "contexts.rows=many")
    refused("'w99' is not one token", PROMPT, text, "logits=[w99]")
    refused("logits='w1': give a list", PROMPT, text, "logits=w1")
    refused("model=bridge is for scan: .* model=hf", PROMPT, text, "model=bridge")


def test_a_transcoder_of_the_base_on_another_model(command, models, transcoders, tmp_path):
    code, _, err = command(
        *("trace", PROMPT, f"model.path={models / 'text'}", f"transcoder={transcoders / 'others'}"),
        *("same_model=false", *SMALL),
    )
    assert code == 0, err
    assert (tmp_path / "traced/index.html").is_file()


def test_what_lies_in_the_way_is_not_overwritten(refused, command, models, tmp_path):
    (tmp_path / "traced").mkdir()
    (tmp_path / "traced/metadata").write_text("")
    (tmp_path / "traced/graph-metadata.json").write_text('{"other": 1}')
    code, _, err = command(
        "trace", PROMPT, f"model.path={models / 'text'}", "heads=0", "output=traced"
    )
    assert (code, len(err.splitlines())) == (2, 1)
    assert "is no list of graphs" in err
    assert not (tmp_path / "traced/graph.safetensors").exists()
