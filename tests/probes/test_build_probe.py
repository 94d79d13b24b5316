import sys
from pathlib import Path

import pytest
import yaml

from circuitkeep.circuits import load_circuit
from circuitkeep.probes import (
    Mixture,
    Probe,
    RepeatedTokens,
    build_probe,
    describe,
    probe_fingerprint,
)

NAMES = """
_target_: circuitkeep.probes.Mixture
shares: [1, 3]
probes:
  - _target_: circuitkeep.probes.RepeatedTokens
    segment: [4, 6]
  - _target_: circuitkeep.probes.OwnSamples
    aliases: {name-mover: copy}
"""


def test_yaml_gives_what_python_gives(token_context, same):
    spec = yaml.safe_load("{_target_: circuitkeep.probes.RepeatedTokens, segment: [4, 6]}")
    probe = build_probe(spec)
    assert probe == RepeatedTokens(segment=(4, 6))
    assert hash(probe) == hash(RepeatedTokens(segment=[4, 6]))
    same(
        probe.batch(token_context, "train", 4, 0),
        RepeatedTokens(segment=(4, 6)).batch(token_context, "train", 4, 0),
    )


def test_nested_probes_are_built():
    mixture = build_probe(yaml.safe_load(NAMES))
    assert isinstance(mixture, Mixture)
    assert mixture.members[0] == RepeatedTokens(segment=(4, 6))
    assert "name-mover" in mixture.labels


@pytest.mark.parametrize("target", ["os.system", "circuitkeep.probes.build_probe", "builtins.dict"])
def test_only_probe_classes_are_called(target):
    with pytest.raises(ValueError, match=f"'{target}' is not a Probe class"):
        build_probe({"_target_": target, "command": "true"})


def test_nested_targets_are_checked_too():
    nested = {"_target_": "circuitkeep.probes.Mixture", "probes": [{"_target_": "os.system"}]}
    with pytest.raises(ValueError, match=r"'os.system' is not a Probe class"):
        build_probe(nested)


def test_no_foreign_module_is_imported():
    assert "this" not in sys.modules
    with pytest.raises(ValueError, match="its module is not imported"):
        build_probe({"_target_": "this.Probe"})
    assert "this" not in sys.modules


def test_own_probes_work_once_imported():
    class Mine(RepeatedTokens):
        pass

    sys.modules[__name__].Mine = Mine
    assert isinstance(build_probe({"_target_": f"{__name__}.Mine"}), Mine)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"_target_": "circuitkeep.probes.RepeatedToken"}, "did you mean 'RepeatedTokens'"),
        ({"_target_": "circuitkeep.probe.RepeatedTokens"}, "names no module of circuitkeep"),
        ({"_target_": "circuitkeep.probes.Probe"}, "is not a Probe class"),
        ({"_target_": "RepeatedTokens"}, "is not part of circuitkeep"),
        ({"length": 3}, "mapping with the key '_target_'"),
        (
            {"_target_": "circuitkeep.probes.RepeatedTokens", "lenght": 8},
            "RepeatedTokens has no argument 'lenght'; did you mean 'length'",
        ),
        (
            {"_target_": "circuitkeep.probes.Templates", "answer": "name"},
            "Templates needs the argument 'templates'",
        ),
    ],
)
def test_wrong_specs_are_refused(spec, message):
    with pytest.raises(ValueError, match=message):
        build_probe(spec)


def test_fingerprint_ignores_order_only():
    one = probe_fingerprint({"_target_": "x", "length": 3})
    assert one == probe_fingerprint({"length": 3, "_target_": "x"})
    assert one != probe_fingerprint({"length": 4, "_target_": "x"})
    assert len(one) == 64


def test_describe():
    assert describe(RepeatedTokens()) == "RepeatedTokens()"
    described = describe(build_probe(yaml.safe_load(NAMES)))
    assert described == (
        "Mixture(probes=[RepeatedTokens(segment=[4, 6]), OwnSamples(aliases={name-mover})], "
        "shares=[1.0, 3.0])"
    )


def test_shipped_circuit_labels_its_roles(text_context, sound):
    path = Path(__file__).parents[2] / "configs/circuit/stories260k-name-copying.yaml"
    circuit = load_circuit(path)
    probe = build_probe(circuit.probe)
    assert isinstance(probe, Probe)
    circuit.check_labels(probe.labels)
    assert circuit.behaviour in probe.behaviours
    for split in ("train", "held_out"):
        sound(probe.batch(text_context, split, 16, 0))
