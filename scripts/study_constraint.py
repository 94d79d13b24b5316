"""Does a constraint hold its target from any first weight, and does it cost more than a fixed one?

Trains the embedded model, for 3 seeds, on four tasks. The demo's key-value map, which does not need
what the circuit uses. Contradiction: rows like the probe's own, in which the token that repeats is
followed, token by token with a probability from 0 to 1, by another one than before. DPO and GRPO:
the key-value map from preferences and from rewards, as experiment=embedded_dpo and embedded_grpo.
Once with each of 7 fixed weights, and with ``constraint=0.95`` from 3 first weights. Prints
Markdown tables.

    python scripts/study_constraint.py [--tasks TASK ...] [--rows 1] [--jobs 2]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

TARGET = 0.95
SEEDS = (0, 1, 2)
FIXED = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
FIRST = (0.01, 1.0, 30.0)
# Each with the experiment that has its settings.
TASKS = {
    "key-value": "demo",
    "contradiction": "demo",
    "dpo": "embedded_dpo",
    "grpo": "embedded_grpo",
}


def main() -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rows", type=int, default=1, help="probe rows per step")
    parser.add_argument("--output", type=Path, help="default: outputs/constraint-ROWS")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    output = options.output or Path(f"outputs/constraint-{options.rows}")
    os.environ["OMP_NUM_THREADS"] = "1"
    runs = [
        (task, kind, weight, seed, options.rows, output)
        for task in options.tasks
        for kind, weights in (("constraint", FIRST), ("fixed", FIXED))
        for weight in weights
        for seed in SEEDS
    ]
    with ProcessPoolExecutor(options.jobs) as pool:
        found = list(pool.map(run, *zip(*runs, strict=True)))
    for task in options.tasks:
        print(f"\n{task}\n")
        _print([one for one in found if one["task"] == task])


def _print(found: list[dict[str, Any]]) -> None:
    print(
        "| run | held-in, last third | farthest from the target | held out | weight | task cost |"
    )
    print("|---|---|---|---|---|---|")
    keys = ("held_in", "farthest", "held_out", "weight", "loss")
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        groups.setdefault(f"{one['kind']} {one['first']:g}", []).append(one)
    for name, ones in groups.items():
        cells = [" ".join(f"{one[key]:.4g}" for one in ones) for key in keys[:-1]]
        cells.append(" ".join(f"{one['loss']:.4f}" for one in ones))
        print(f"| {name} | " + " | ".join(cells) + " |")
    for kept, of_seeds in (("on average", mean), ("on every seed", min)):
        keeps = {
            name: mean(one["loss"] for one in ones)
            for name, ones in groups.items()
            if name.startswith("fixed")
            and of_seeds(one["held_in"] for one in ones) >= TARGET - 0.02
        }
        if not keeps:
            print(f"\nno fixed weight keeps the target {kept}")
            continue
        best = min(keeps, key=keeps.__getitem__)
        for name, ones in groups.items():
            if name.startswith("constraint"):
                pairs = zip(ones, groups[best], strict=True)
                costs = " ".join(f"{one['loss'] - other['loss']:+.4f}" for one, other in pairs)
                print(f"\n{name} costs {costs} more than {best}, the best that keeps it {kept}")


def run(task: str, kind: str, first: float, seed: int, rows: int, output: Path) -> dict[str, Any]:
    """One training; what came of it is kept in a file, and not repeated."""
    path = output / f"{task}-{kind}-{first:g}-{seed}.json"
    if path.is_file():
        return json.loads(path.read_text())
    found = {"task": task, "kind": kind, "first": first, "seed": seed}
    found |= _train(task, kind, first, seed, rows, output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return found


def _train(
    task: str, kind: str, first: float, seed: int, rows: int, output: Path
) -> dict[str, Any]:
    # Here, so that only the processes that train load all this.
    import torch
    from lightning.pytorch import Trainer, seed_everything
    from lightning.pytorch.loggers import CSVLogger

    from circuitkeep.callbacks.preservation import CircuitPreservation
    from circuitkeep.capture import attach
    from circuitkeep.capture.models import load_model
    from circuitkeep.cli.demo import ROLES
    from circuitkeep.cli.settings import construct
    from circuitkeep.evals.circuit import measure_circuit
    from circuitkeep.guard import Constraint
    from circuitkeep.probes import build_probe
    from circuitkeep.probing import probe_rows
    from circuitkeep.scan import ScanReport, scan
    from circuitkeep.tasks.contradiction import Contradiction
    from circuitkeep.tasks.embedded import train_embedded

    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    seed_everything(seed, verbose=False)
    base = train_embedded(Path.home() / ".cache" / "circuitkeep", seed)
    model = load_model(base)
    spec = {"_target_": "circuitkeep.probes.RepeatedTokens", "exclude": [1]}
    heads = scan(attach(model), None, build_probe(spec), ROLES)
    report = ScanReport(str(base), "RepeatedTokens", heads, least=0.4)
    circuit = report.to_circuit("induction", spec, "accuracy", "study_constraint")
    name = f"{task}-{kind}-{first:g}-{seed}"
    # A fixed weight is one between bounds that leave it no room: it is seen, and does not move.
    constraint = Constraint(TARGET)
    if kind == "fixed":
        constraint = Constraint(TARGET, least=first * (1 - 1e-6), most=first * (1 + 1e-6))
    guard = CircuitPreservation(
        circuit, weight=first, constraint=constraint, rows_per_step=rows, seed=seed
    )
    config = _config(TASKS[task], seed)
    steps = config.trainer.max_steps
    logger = CSVLogger(output, name)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        gradient_clip_val=1.0,
        log_every_n_steps=1,
        logger=logger,
        callbacks=[guard],
        default_root_dir=output / name,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
    )
    data = construct(config.data)
    if task == "contradiction":
        data = Contradiction(train_rows=len(data.train_rows), seed=seed)
    learner = construct(config.task, model=model)
    seen: dict[str, list[float]] = {"weight": [], "retention_held_in": []}
    _listen(logger, seen)
    trainer.fit(learner, data)
    last = seen["retention_held_in"][-steps // 3 :]
    validated = Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    ).validate(learner, data, verbose=False)[0]
    # Rewards are at most 1.
    loss = 1 - validated["val/reward"] if task == "grpo" else validated["val/loss_nats"]
    batch = probe_rows(circuit, attach(model), None, "held_out", 256, 10_000)
    now = measure_circuit(attach(model.eval()), circuit, batch, causal=False)
    then = measure_circuit(attach(load_model(base)), circuit, batch, causal=False)
    return {
        "held_in": mean(last),
        "farthest": max((value - TARGET for value in last), key=abs),
        "held_out": now.behaviour.mean().item() / then.behaviour.mean().item(),
        "weight": mean(seen["weight"][-steps // 3 :]),
        "loss": loss,
        "validated": validated,
        "weights": seen["weight"],
        "retentions": seen["retention_held_in"],
    }


def _config(experiment: str, seed: int) -> Any:
    from hydra import compose, initialize_config_dir

    from circuitkeep.cli.surroundings import config_directory

    with initialize_config_dir(str(config_directory()), version_base="1.3"):
        return compose("train", [f"experiment={experiment}", f"seed={seed}"])


def _listen(logger: Any, seen: dict[str, list[float]]) -> None:
    log = logger.log_metrics

    def listening(metrics: dict[str, float], step: int | None = None) -> None:
        for key, values in seen.items():
            if (value := metrics.get(f"circuit/induction/{key}")) is not None:
                values.append(value)
        log(metrics, step)

    logger.log_metrics = listening


if __name__ == "__main__":
    main()
