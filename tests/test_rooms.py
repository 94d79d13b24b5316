"""Imports point down only, and the penalties stay light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import circuitkeep

PACKAGE = Path(circuitkeep.__file__).parent

# `files` stands below all: it writes files and knows nothing of what is in them.
RANKS = {
    "files": -1,
    **dict.fromkeys(["circuits", "functional"], 0),
    **dict.fromkeys(["probes", "penalties", "capture"], 1),
    **dict.fromkeys(["probing", "reference", "causal", "manifolds", "pages", "transcoders"], 2),
    **dict.fromkeys(["evals", "graphs", "geometry"], 3),
    **dict.fromkeys(["scan", "compare", "tasks", "guard", "checks"], 4),
    **dict.fromkeys(["callbacks", "integrations", "watch", "sweeps", "nightly"], 5),
    "bench": 6,  # it measures the callbacks too
    **dict.fromkeys(["pytest_plugin", "cli"], 7),
    "__main__": 8,
}
ROOMS_ALLOWED = {"functional": set(), "penalties": {"functional"}}
PACKAGES_ALLOWED = {"functional": {"torch", "jaxtyping"}, "penalties": {"torch", "jaxtyping"}}
# `bench` times what others do with the models' libraries; `integrations` subclasses their trainer.
ONLY_IN = {
    "transformers": {"capture", "bench", "integrations"},
    "transformer_lens": {"capture", "bench"},
    "accelerate": {"integrations"},
    "trl": set(),  # its trainers are named by users alone
    "lm_eval": {"evals"},
    "lightning": {"tasks", "callbacks", "bench", "cli"},
}


def imported_modules(source, path):
    """Absolute dotted names of all that the module at `path` imports, inside functions too."""
    package = ["circuitkeep", *path.parent.parts]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            # `from circuitkeep import scan` imports a room, or a name such as `__version__`.
            if base == ["circuitkeep"]:
                yield from (f"circuitkeep.{alias.name}" for alias in node.names)
            else:
                yield ".".join(base)


def violations(source, path):
    """What the module at `path`, relative to the package, imports against the rules."""
    room = path.parts[0].removesuffix(".py")
    if room == "__init__":
        # Importing any room loads the package first, so it must pull in nothing.
        return [f"{path} imports {n}" for n in imported_modules(source, path) if n != "__future__"]
    if room not in RANKS:
        return [f"{path}: room {room!r} has no rank"]
    found = []
    for name in imported_modules(source, path):
        top, _, rest = name.partition(".")
        if top == "circuitkeep":
            other = rest.partition(".")[0]
            if other in ("", room, "__version__"):
                continue
            allowed = RANKS.get(other, 99) < RANKS[room]
            allowed &= other in ROOMS_ALLOWED.get(room, RANKS)
        else:
            allowed = room in ONLY_IN.get(top, RANKS)
            if room in PACKAGES_ALLOWED:
                allowed &= top in PACKAGES_ALLOWED[room] | sys.stdlib_module_names
        if not allowed:
            found.append(f"{path} imports {name}")
    return found


def test_imports_point_down():
    found = [
        violation
        for path in sorted(PACKAGE.rglob("*.py"))
        for violation in violations(path.read_text("utf-8"), path.relative_to(PACKAGE))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("functional/x.py", "from circuitkeep.probes import Probe"),
        ("functional/x.py", "import numpy"),
        ("functional/x.py", "from circuitkeep.circuits import Head"),
        ("penalties/x.py", "from circuitkeep.circuits import Head"),
        ("penalties/x.py", "def f():\n    from lightning.pytorch import Trainer"),
        ("penalties/x.py", "def f():\n    import circuitkeep.capture.hf"),
        ("probes/x.py", "from ..penalties.base import Labels"),
        ("probes/x.py", "from .. import capture"),
        ("causal/x.py", "from circuitkeep import reference"),
        ("causal/x.py", "from .. import reference"),
        ("scan.py", "import circuitkeep.attic"),
        ("evals/x.py", "from circuitkeep.callbacks.monitor import CircuitMonitor"),
        ("evals/x.py", "if TYPE_CHECKING:\n    from transformers import PreTrainedModel"),
        ("tasks/x.py", "import transformer_lens.model_bridge as bridge"),
        ("guard/x.py", "from lightning.pytorch import Trainer"),
        ("guard/x.py", "from circuitkeep.callbacks import CircuitPreservation"),
        ("integrations/x.py", "import trl"),
        ("integrations/x.py", "import lightning"),
        ("attic/x.py", "import torch"),
        ("__init__.py", "from circuitkeep.penalties import Sum"),
    ],
)
def test_a_wrong_import_is_found(path, source):
    assert len(violations(source, Path(path))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("functional/x.py", "import math\nimport torch\nfrom jaxtyping import Float"),
        ("functional/x.py", "from circuitkeep.functional.scores import head_score"),
        ("functional/x.py", "from .scores import head_score\nfrom . import scores"),
        ("penalties/x.py", "from ..functional import head_score"),
        ("capture/hf.py", "import transformers\nfrom circuitkeep.circuits import Head"),
        ("circuits.py", "from circuitkeep.files import replacing\nimport yaml"),
        ("callbacks/x.py", "from circuitkeep.tasks import LanguageModelling\nimport lightning"),
        ("integrations/x.py", "from transformers import Trainer\nimport accelerate"),
        ("guard/x.py", "from circuitkeep.reference import Reference"),
        ("cli.py", "from circuitkeep import __version__"),
        ("__init__.py", "from __future__ import annotations"),
    ],
)
def test_a_right_import_is_not(path, source):
    assert violations(source, Path(path)) == []


@pytest.mark.parametrize("room", ["penalties", "functional"])
def test_light_rooms_load_no_trainer_and_no_models(room):
    heavy = ["lightning", "wandb", "transformer_lens", "transformers"]
    program = (
        f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r}); import circuitkeep.{room}; "
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
