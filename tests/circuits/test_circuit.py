import pytest
import yaml

from circuitkeep.circuits import (
    Circuit,
    Head,
    Role,
    did_you_mean,
    dump_circuit,
    load_circuit,
    parse_circuit,
    save_circuit,
)

TEXT = """
name: induction-2L
source: "Olsson et al. 2022, arXiv:2209.11895"
roles:
  previous-token: [L0H1]
  induction: [L1H3, L1H0]
probe: {_target_: circuitkeep.probes.RepeatedTokens, length: 32, segment: [4, 15]}
behaviour: accuracy
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "circuit.yaml"
    path.write_text(TEXT)
    return path


def test_heads():
    assert str(Head(5, 11)) == "L5H11"
    assert Head.parse("L5H11") == Head.parse(" 5.11 ") == Head(5, 11)
    assert sorted([Head(1, 0), Head(0, 9), Head(0, 2)]) == [Head(0, 2), Head(0, 9), Head(1, 0)]


@pytest.mark.parametrize("text", ["", "L1", "l1h2", "L1H2x", "1.2.3", "L-1H0", "L1.5H0", "5"])
def test_what_is_no_head(text):
    with pytest.raises(ValueError, match="is not a head; write layer and index as 'L5H1'"):
        Head.parse(text)


def test_negative_heads():
    with pytest.raises(ValueError, match="head numbers count from 0, got layer 0, index -1"):
        Head(0, -1)


def test_reading(file):
    circuit = load_circuit(file)
    assert circuit.name == "induction-2L"
    assert circuit.roles == (
        Role("previous-token", (Head(0, 1),)),
        Role("induction", (Head(1, 3), Head(1, 0))),
    )
    assert circuit.heads == (Head(0, 1), Head(1, 0), Head(1, 3)), "sorted, each once"
    assert circuit.probe["segment"] == [4, 15]
    assert circuit.behaviour == "accuracy"
    assert "2209.11895" in circuit.source


def test_a_head_may_have_two_roles():
    circuit = Circuit(
        "c", (Role("a", (Head(0, 1),)), Role("b", (Head(0, 1),))), {}, "accuracy", "test"
    )
    assert circuit.heads == (Head(0, 1),)


def test_round_trip(file, tmp_path):
    circuit = load_circuit(file)
    copy = tmp_path / "new" / "copy.yaml"
    save_circuit(circuit, copy)
    assert load_circuit(copy) == circuit
    assert dump_circuit(load_circuit(copy)) == copy.read_text()
    assert [path.name for path in copy.parent.iterdir()] == ["copy.yaml"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("behaviour:", "behavior:", "unknown key 'behavior'; did you mean 'behaviour'?"),
        ("roles:", "zzz:", "unknown key 'zzz'; known: name, roles, probe, behaviour, source"),
        ("behaviour: accuracy\n", "", "the key 'behaviour' is missing"),
        ("accuracy", "acuracy", "unknown behaviour 'acuracy'; did you mean 'accuracy'?"),
        ("[L0H1]", "[L0H1, L0H1]", "role 'previous-token': a head is named twice"),
        ("[L0H1]", "[]", "role 'previous-token' must list its heads"),
        ("[L0H1]", "L0H1", "role 'previous-token' must list its heads"),
        ("[L0H1]", "[head 1]", "'head 1' is not a head"),
        ("name: induction-2L", "name: my circuit", "letters, digits"),
        ("name: induction-2L", "name: 7", "'name' must be a non-empty text, got 7"),
        ("name: induction-2L", "name: ''", "'name' must be a non-empty text"),
        ("_target_: circuitkeep", "target: circuitkeep", "'_target_'"),
        ("name:", "- name:", "is not YAML"),
        ("name:", "name: [", "is not YAML"),
    ],
)
def test_strictness(file, old, new, message):
    assert old in TEXT
    file.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(ValueError, match=r"circuit\.yaml") as caught:
        load_circuit(file)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", ["", "just words", "[1, 2]", "roles: {}"])
def test_other_files(file, content):
    file.write_text(content)
    with pytest.raises(ValueError, match=r"circuit\.yaml:1: "):
        load_circuit(file)


def test_a_binary_file(file):
    file.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ValueError, match="is not YAML"):
        load_circuit(file)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no circuit file at .*circuitkeep scan"):
        load_circuit(tmp_path / "none.yaml")


def test_a_duplicate_key_is_refused(file):
    file.write_text(TEXT.replace("  induction:", "  previous-token:"))
    with pytest.raises(ValueError, match="the key 'previous-token' stands twice"):
        load_circuit(file)


def test_a_role_cannot_stand_twice():
    role = Role("a", (Head(0, 0),))
    with pytest.raises(ValueError, match="role 'a' stands twice"):
        Circuit("c", (role, role), {}, "accuracy", "test")
    with pytest.raises(ValueError, match="every role needs at least one head"):
        Circuit("c", (Role("a", ()),), {}, "accuracy", "test")
    with pytest.raises(ValueError, match="every role needs at least one head"):
        Circuit("c", (), {}, "accuracy", "test")


def test_heads_outside_the_model(file):
    circuit = load_circuit(file)
    circuit.check_model(2, 4)
    with pytest.raises(ValueError, match=r"'induction': head L1H3 is outside .* from L0H0 to L1H2"):
        circuit.check_model(2, 3)
    with pytest.raises(ValueError, match="'induction': head L1H3"):
        circuit.check_model(1, 8)


def test_roles_that_the_probe_does_not_label(file):
    circuit = load_circuit(file)
    circuit.check_labels(["induction", "previous-token", "other"])
    with pytest.raises(
        ValueError, match="does not label the role 'induction'; did you mean 'inductions'"
    ):
        circuit.check_labels(["previous-token", "inductions"])


def test_other_heads(file):
    circuit = load_circuit(file)
    heads = {"previous-token": [Head(0, 2)], "induction": iter([Head(1, 1)])}
    control = circuit.with_heads(heads, "control")
    assert control.name == "control"
    assert control.heads == (Head(0, 2), Head(1, 1))
    assert (control.probe, control.behaviour) == (circuit.probe, circuit.behaviour)


def test_random_heads_are_as_many_others_of_the_same_layers(file):
    circuit = load_circuit(file)
    drawn = {seed: circuit.with_random_heads(4, seed) for seed in range(30)}
    for seed, control in drawn.items():
        assert control.name == f"induction-2L-random-{seed}"
        assert [len(role.heads) for role in control.roles] == [1, 2]
        assert [head.layer for head in control.heads] == [0, 1, 1]
        assert not set(control.heads) & set(circuit.heads)
    assert circuit.with_random_heads(4, 7) == drawn[7]
    # Of the first layer each of the three others; of the second there are only two others.
    assert {control.heads[0].index for control in drawn.values()} == {0, 2, 3}
    assert {control.heads[1:] for control in drawn.values()} == {(Head(1, 1), Head(1, 2))}


def test_named_heads_make_up_for_missing_others(file):
    circuit = load_circuit(file).with_heads(
        {
            "previous-token": [Head(1, 0), Head(1, 1)],
            "induction": [Head(1, 0), Head(1, 2)],  # L1H0 has two roles
        },
        "most",
    )
    control = circuit.with_random_heads(4, 0)
    first, second = control.roles
    assert len(control.heads) == 3
    assert Head(1, 3) in control.heads
    assert first.heads[0] == second.heads[0], "one head instead of one head"


def test_all_heads(file):
    control = load_circuit(file).with_all_heads(2, 3)
    assert control.name == "induction-2L-all"
    every = tuple(Head(layer, index) for layer in (0, 1) for index in (0, 1, 2))
    assert [role.heads for role in control.roles] == [every, every]


def test_circuits_can_be_keys(file):
    assert len({load_circuit(file), load_circuit(file)}) == 1


def test_did_you_mean():
    assert did_you_mean("lenght", ["length", "rows"]) == "; did you mean 'length'?"
    assert did_you_mean("x", iter(["length", "rows"])) == "; known: length, rows"


def test_parsing_needs_a_mapping():
    with pytest.raises(ValueError, match="a circuit file holds the keys name, roles"):
        parse_circuit(None)


def test_thresholds_are_read_written_and_checked(tmp_path):
    content = {**yaml.safe_load(TEXT), "thresholds": {"induction": 0.4}}
    circuit = parse_circuit(content)
    assert circuit.thresholds == {"induction": 0.4}
    save_circuit(circuit, tmp_path / "c.yaml")
    assert load_circuit(tmp_path / "c.yaml").thresholds == circuit.thresholds
    for thresholds, message in (
        ({"inducton": 0.4}, "which is none of its roles; did you mean 'induction'"),
        ({"induction": 1.4}, r"threshold must be in \(0, 1\), got 1.4"),
        ({"induction": "high"}, "must map roles to numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_circuit({**content, "thresholds": thresholds})
