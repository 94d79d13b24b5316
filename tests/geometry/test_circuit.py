"""All figures of a circuit's manifolds: none depends on the basis, and the files hold them all."""

import csv
import io
import json
import math

import pytest
import torch
from rich.console import Console

from circuitkeep.capture import attach
from circuitkeep.circuits import Circuit, CircuitError, Head, Manifold, Role
from circuitkeep.geometry import head_geometry
from circuitkeep.geometry.channels import channels
from circuitkeep.geometry.circuit import circuit_geometry, pairs_of
from circuitkeep.geometry.report import (
    alignments_csv,
    best_of_pairs,
    manifolds_csv,
    to_json,
)
from circuitkeep.geometry.terminal import channel_table, tables
from circuitkeep.transcoders import CrossLayerTranscoder, TranscoderConfig

from .conftest import LETTERS, NUMBERS, batch_of, rotated

BATCHES = batch_of(seed=0), batch_of(seed=1)
LATER = Manifold("after", "position", 0, (1, 11), dimensions=4)


def circuit_of(*manifolds):
    roles = (Role("any", (Head(0, 0),)),)
    return Circuit("planted", roles, {}, "accuracy", "planted", manifolds=manifolds)


@pytest.fixture
def found(planted):
    circuit = circuit_of(LETTERS, NUMBERS, LATER)
    seen = []
    result = circuit_geometry(
        planted, circuit, *BATCHES, draws=20, progress=lambda *done: seen.append(done)
    )
    assert seen[-1] == (15, 15)
    return planted, result


def flat(value, path=""):
    """Every number of a JSON value, by where it stands."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from flat(item, f"{path}.{number}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def test_turning_the_stream_of_a_whole_model_changes_no_number(llama):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transcoder = CrossLayerTranscoder(TranscoderConfig(n_layers=2, d_model=32, n_features=30))
    circuit = circuit_of(LETTERS, NUMBERS, LATER)
    numbers = []
    for model in (llama, rotated(llama)):
        backend = attach(model)
        if numbers:  # the features are turned along
            with torch.no_grad():
                turn = torch.linalg.lstsq(
                    llama.model.embed_tokens.weight, model.model.embed_tokens.weight
                ).solution
                transcoder.W_enc.copy_((transcoder.W_enc.double() @ turn).float())
        result = circuit_geometry(backend, circuit, *BATCHES, transcoder, draws=12)
        text = to_json(head_geometry(backend), "", channels(backend, draws=20), result)
        content = json.loads(text)
        # Eigenvalues of equal size come in either order of a conjugate pair.
        for head in content["heads"]:
            head["eigenvalues"] = sorted([re, abs(im)] for re, im in head["eigenvalues"])
        numbers.append(dict(flat(content)))
    before, after = numbers
    assert before.keys() == after.keys()
    assert len(before) > 5000
    wrong = [p for p in before if not math.isclose(before[p], after[p], rel_tol=1e-4, abs_tol=1e-4)]
    assert wrong == []


def test_pairs_of_one_variable_are_left_out():
    again = Manifold("again", "letter", 1, (0, 15))
    names = [(q.name, k.name) for q, k in pairs_of((LETTERS, again, NUMBERS))]
    assert ("letters", "again") not in names
    assert ("letters", "letters") in names
    assert len(names) == 3 + 4


def test_what_is_measured(found):
    _, result = found
    best = result.alignments[0]
    named = {(one.query, one.key): one for one in reversed(result.alignments)}
    assert str(named["letters", "numbers"].head) == "L0H1"
    assert named["letters", "numbers"].is_boundary
    # Manifolds of what enters layer 0 are read by all heads, those after it by layer 1's.
    assert {one.head.layer for one in result.alignments if one.key == "after"} == {1}
    assert {one.head.layer for one in result.alignments if one.query == one.key == "letters"} == {
        0,
        1,
    }
    assert result.parts["letters"][0].name == "embedding"
    assert result.tilings == ()
    assert len(best.scores) == 16


def test_files_hold_it(found):
    backend, result = found
    content = json.loads(to_json(head_geometry(backend), "m", channels(backend, draws=5), result))
    assert content["channels"]["strongest"][0]["writer"] == "L0H1"
    assert [one["manifold"]["name"] for one in content["circuit"]["shapes"]] == [
        "letters",
        "numbers",
        "after",
    ]
    kept = [one for one in content["circuit"]["alignments"] if one["scores"]]
    assert len(kept) == len(best_of_pairs(result.alignments)) == 3 * 9
    rows = list(csv.DictReader(io.StringIO(manifolds_csv(result))))
    assert [row["manifold"] for row in rows] == ["letters", "numbers", "after"]
    assert float(rows[0]["probe_rmse"]) == result.shapes[0].probe.rmse
    rows = list(csv.DictReader(io.StringIO(alignments_csv(result))))
    assert len(rows) == len(result.alignments)
    assert {row["is_boundary"] for row in rows} <= {"True", "False"}
    console = Console(file=io.StringIO(), width=160)
    for table in (*tables(result), channel_table(channels(backend, draws=5), 3)):
        console.print(table)
    text = console.file.getvalue()
    assert all(word in text for word in ("letters", "number", "L0H1", "yes"))


def test_boundary_heads_come_first(found):
    _, result = found
    own = [one for one in best_of_pairs(result.alignments, 8) if one.query != one.key]
    for pair in {(one.query, one.key) for one in own}:
        flags = [one.is_boundary for one in own if (one.query, one.key) == pair]
        assert flags == sorted(flags, reverse=True)


def test_mistakes(planted):
    with pytest.raises(ValueError, match="names no manifolds; add some"):
        circuit_geometry(planted, circuit_of(), *BATCHES)
    with pytest.raises(CircuitError, match="outside the model"):
        circuit_geometry(planted, circuit_of(Manifold("m", "letter", 2, (0, 9))), *BATCHES)


def test_manifolds_of_the_last_layer_are_read_by_no_head(planted):
    last = Manifold("last", "letter", 1, (0, 15))
    result = circuit_geometry(planted, circuit_of(last), *BATCHES, draws=5)
    assert result.alignments == result.transforms == ()
    assert len(tables(result)) == 1
