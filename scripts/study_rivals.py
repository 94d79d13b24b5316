"""What each way to keep a circuit keeps, and what it costs, at an equal tuning budget.

Fine-tunes the embedded model for 300 steps on two tasks with each method at each point of its
grid, for 3 seeds; see docs/results.md. Prints Markdown tables, and draws the fronts. Runs that
are there already are not repeated; there are 294, of 8 s on one core.

    python scripts/study_rivals.py [--output outputs/rivals] [--plots docs] [--jobs 2]
        [--tasks key-value] [--methods guard,ewc] [--seeds 0,1,2]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import io
import itertools
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEEDS = (0, 1, 2)
TASKS = ("key-value", "contradiction")
PLAIN = "no-guard"
CACHE = Path.home() / ".cache" / "circuitkeep"


@dataclass(frozen=True)
class Method:
    """One way to keep a circuit: what it is called, what it overrides, what is tuned.

    Attributes:
        title: In tables and plots.
        overrides: Of ``circuitkeep train experiment=demo``; {} is the value, {seed} the seed.
        grid: The values that are tried.
    """

    title: str
    overrides: tuple[str, ...]
    grid: tuple[float, ...]


def on_probes(title: str, *overrides: str) -> Method:
    """A penalty on probe rows; all have the same rows, pool and grid."""
    work = ("penalty.rows_per_step=1", "penalty.pool_rows=512", "penalty.weight={}")
    return Method(title, (*overrides, *work), (0.1, 1.0, 10.0))


def instead(title: str, *overrides: str, grid: tuple[float, ...]) -> Method:
    """Something without a penalty."""
    return Method(title, ("penalty=none", *overrides), grid)


GUARD = "penalty=recommended"
# A tenth of the weight that ships, itself, and ten times as much; learning rates around 3e-3, the
# demo's own, where they can help. Settled before the runs; as many points for each.
METHODS = {
    PLAIN: instead("no guard", grid=(0.0,)),
    "guard": on_probes("guard (recommended)", GUARD),
    "patterns-only": on_probes("patterns only", "penalty=patterns_only"),
    "effect": on_probes("EffectDrift alone", "penalty=effect"),
    "random-heads": on_probes(
        "control: random heads", GUARD, "control=random_heads", "control.seed={seed}"
    ),
    "all-heads": on_probes("control: all heads", GUARD, "control=all_heads"),
    "kl-probe": on_probes("KL, probe prompts", "penalty=behaviour_only"),
    "rehearsal": on_probes("rehearsal", "penalty=rehearsal"),
    "kl-batch": instead(
        "KL, training batch", "rival=reference_kl", "rival.weight={}", grid=(0.01, 0.1, 1.0)
    ),
    "l2sp": instead("L2-SP", "rival=l2sp", "rival.weight={}", grid=(0.01, 0.1, 1.0)),
    "ewc": instead("EWC", "rival=ewc", "rival.weight={}", grid=(10.0, 100.0, 1000.0)),
    "frozen-heads": instead(
        "frozen heads", "rival=frozen_heads", "task.lr={}", grid=(3e-4, 1e-3, 3e-3)
    ),
    "lora": instead("LoRA, r 8", "rival=lora", "task.lr={}", grid=(1e-3, 3e-3, 1e-2)),
    "lower-lr": instead("lower learning rate", "task.lr={}", grid=(1e-4, 3e-4, 1e-3)),
    "wise-ft": instead("WiSE-FT", grid=(0.25, 0.5, 0.75)),
    "guard-weights": on_probes(
        "guard + HeadWeightDrift",
        GUARD,
        "+penalty.loss.terms.weights._target_=circuitkeep.penalties.HeadWeightDrift",
    ),
    "attribution": on_probes("AttributionDrift alone", "penalty=attribution"),
}


def main() -> None:
    """Run what is missing, print the tables, draw the fronts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/rivals"))
    parser.add_argument("--plots", type=Path, help="folder for pareto-*.svg; none without it")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    for name, known in (("tasks", TASKS), ("methods", METHODS), ("seeds", SEEDS)):
        text = ",".join(map(str, known))
        parser.add_argument(f"--{name}", default=text, help=f"some of {text}")
    options = parser.parse_args()
    tasks = chosen("task", options.tasks, TASKS)
    methods = chosen("method", options.methods, METHODS)
    seeds = [int(seed) for seed in chosen("seed", options.seeds, [str(seed) for seed in SEEDS])]
    os.environ["OMP_NUM_THREADS"] = "1"
    from study_rivals_report import report

    methods = [PLAIN, *(method for method in methods if method != PLAIN)]
    runs = [
        (options.output.resolve(), task, method, value, seed)
        for task, method, seed in itertools.product(tasks, methods, seeds)
        for value in METHODS[method].grid
    ]
    # First the unguarded: WiSE-FT starts from them.
    stages = [[one for one in runs if (one[2] == PLAIN) is plain] for plain in (True, False)]
    found = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for stage in stages:
            for one in pool.map(run, *zip(*stage, strict=True)):
                found.append(one)
                print(f"{len(found)}/{len(runs)} {one['name']}", file=sys.stderr, flush=True)
    report(found, {method: METHODS[method].title for method in methods}, options.plots)


def chosen(kind: str, text: str, known: Iterable[str]) -> list[str]:
    """The names in `text`; ends the program at one that there is not."""
    from circuitkeep.circuits import did_you_mean

    names, known = text.split(","), list(known)
    for name in names:
        if name not in known:
            sys.exit(f"study_rivals: there is no {kind} {name!r}" + did_you_mean(name, known))
    return names


def run(output: Path, task: str, method: str, value: float, seed: int) -> dict[str, Any]:
    """One run; what came of it is kept in a file, and not repeated."""
    name = f"{task}/{method}/{value:g}/{seed}"
    path = output / name / "result.json"
    if path.is_file():
        return json.loads(path.read_text())
    from circuitkeep.capture.interpolation import interpolate
    from circuitkeep.capture.models import load_model
    from circuitkeep.files import replacing

    if method == "wise-ft":
        plain = output / task / PLAIN / "0" / str(seed) / "model"
        model = interpolate(load_model(base_of(seed)[0]), load_model(plain), value)
    else:
        model = trained(METHODS[method], task, value, seed, path.parent)
    found = {"name": name, "task": task, "method": method, "value": value, "seed": seed}
    found |= measured(model, task, seed)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(found))
    return found


def trained(method: Method, task: str, value: float, seed: int, folder: Path) -> Any:
    """What ``circuitkeep train`` makes of the base model."""
    from hydra import compose, initialize_config_dir
    from lightning.pytorch.utilities import disable_possible_user_warnings

    from circuitkeep.capture.models import load_model, quiet
    from circuitkeep.circuits import save_circuit
    from circuitkeep.cli import train
    from circuitkeep.cli.surroundings import config_directory

    quiet()
    disable_possible_user_warnings()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    save_circuit(base_of(seed)[1], folder / "circuit.yaml")
    overrides = [
        "experiment=demo",
        f"data={task.replace('-', '_')}",
        *(text.format(value, seed=seed) for text in method.overrides),
        f"seed={seed}",
        f"model.seed={seed}",
        f"model.cache_dir='{CACHE}'",
        f"circuit.path='{folder / 'circuit.yaml'}'",
        f"output='{folder}'",
        # Everything is measured afterwards, and no run is resumed.
        *(f"~callbacks.{name}" for name in ("monitor", "capability", "checkpoint", "exact_resume")),
        "~logger.csv",
        *("+trainer.enable_checkpointing=false", "trainer.enable_progress_bar=false"),
        *("+trainer.limit_val_batches=0", "trainer.num_sanity_val_steps=0"),
    ]
    with initialize_config_dir(str(config_directory()), version_base=None):
        config = compose("train", overrides)
    with contextlib.redirect_stdout(io.StringIO()):
        train.run(config)
    shutil.rmtree(folder / "references", ignore_errors=True)  # megabytes, and of no more use
    return load_model(folder / "model")


@functools.cache
def base_of(seed: int) -> tuple[Path, Any, Any, Any]:
    """The base model's folder, its circuit, held-out rows, and what is measured on them."""
    from circuitkeep.capture import attach
    from circuitkeep.capture.models import load_model
    from circuitkeep.cli.demo import ROLES
    from circuitkeep.evals.circuit import measure_circuit
    from circuitkeep.probes import build_probe
    from circuitkeep.probing import probe_rows
    from circuitkeep.scan import ScanReport, scan
    from circuitkeep.tasks.embedded import train_embedded

    folder = train_embedded(CACHE, seed, progress_bar=False)
    spec = {"_target_": "circuitkeep.probes.RepeatedTokens", "exclude": [1]}
    backend = attach(load_model(folder))
    report = ScanReport(
        str(folder), "RepeatedTokens", scan(backend, None, build_probe(spec), ROLES), least=0.4
    )
    circuit = report.to_circuit("induction", spec, "accuracy", "study_rivals")
    batch = probe_rows(circuit, backend, None, "held_out", 256, 10_000)
    return folder, circuit, batch, measure_circuit(backend, circuit, batch)


@functools.cache
def validation(task: str, seed: int) -> Any:
    """Held-out rows of a task, or of what the base model was trained on."""
    from circuitkeep.tasks import KeyValueMap, RepeatedSegments
    from circuitkeep.tasks.contradiction import Contradiction

    data = {
        "key-value": KeyValueMap,
        "contradiction": Contradiction,
        "repetition": RepeatedSegments,
    }
    return data[task](train_rows=1, val_rows=256, seed=seed).val_dataloader()


def losses(model: Any, task: str, seed: int) -> dict[str, float]:
    """On the task, and on what the base model was trained on; in nats."""
    from circuitkeep.evals.capability import evaluate_capability

    loaders = {"task": validation(task, seed), "off_task": validation("repetition", 0)}
    return {
        f"{name}_nats": evaluate_capability(model, rows)["loss_nats"]
        for name, rows in loaders.items()
    }


@functools.cache
def base_losses(task: str, seed: int) -> dict[str, float]:
    """The same of the base model."""
    from circuitkeep.capture.models import load_model

    found = losses(load_model(base_of(seed)[0]), task, seed)
    return {f"base_{name}": nats for name, nats in found.items()}


def measured(model: Any, task: str, seed: int) -> dict[str, float]:
    """Losses in nats, and the three retentions as ``circuitkeep compare`` has them."""
    from circuitkeep.capture import attach
    from circuitkeep.evals.circuit import measure_circuit, retention

    _, circuit, batch, then = base_of(seed)
    kept = retention(measure_circuit(attach(model.eval()), circuit, batch), then, circuit)
    shares = {name.removesuffix("_retention"): share for name, share in kept.items()}
    return losses(model, task, seed) | base_losses(task, seed) | shares


if __name__ == "__main__":
    main()
