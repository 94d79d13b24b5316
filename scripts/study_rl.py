"""Does the guard keep name copying in stories260k under DPO and GRPO, and what does it cost?

Trains experiment=stories260k_dpo and experiment=stories260k_grpo, unguarded and guarded for 3 seeds
each, and once with nothing but the heads' patterns guarded. Compares all of them on held-out
templates, held-out names, and both, and prints a Markdown table for each task. Runs that are there
already are not repeated.

    python scripts/study_rl.py MODEL TEXT [--tasks dpo grpo] [--output outputs/rl] [--jobs 2]
"""

from __future__ import annotations

import argparse
import csv
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from study_stories260k import AXES, circuitkeep

from circuitkeep.circuits import Circuit, save_circuit
from circuitkeep.cli.settings import find_circuit

TASKS = {"dpo": "val/accuracy", "grpo": "val/reward"}
"""Task -> what it is judged by: held-out preferences that are right, or greedy reward."""
CONDITIONS = {
    "unguarded": ["penalty=none"],
    "guarded": [],
    "patterns-only": ["penalty.loss.weights.output=0", "penalty.loss.weights.behaviour=0"],
}
SEEDS = {"unguarded": (0, 1, 2), "guarded": (0, 1, 2), "patterns-only": (0,)}


def main() -> None:
    """Run what is missing, compare, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, help="directory of stories260k")
    parser.add_argument("text", type=Path, help="tinyshakespeare.txt")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--output", type=Path, default=Path("outputs/rl"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    output = options.output
    names = [
        f"{task}/{condition}/{seed}"
        for task in options.tasks
        for condition in CONDITIONS
        for seed in SEEDS[condition]
    ]

    def run(name: str) -> None:
        task, condition, seed = name.split("/")
        if not (output / name / "model").is_dir():
            circuitkeep(
                "train",
                f"experiment=stories260k_{task}",
                f"model.path={options.model}",
                f"data.train={options.text}",
                f"seed={seed}",
                "penalty.rows_per_step=8",
                *CONDITIONS[condition],
                "trainer.accelerator=cpu",
                "trainer.enable_progress_bar=false",
                # Everything about the circuit is measured afterwards, on more rows.
                "callbacks.monitor=null",
                "callbacks.checkpoint=null",
                f"output={output / name}",
            )
        print(name, flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, names))

    circuit = find_circuit("stories260k-name-copying")
    files = []
    for axis in AXES:
        probe = {**circuit.probe, "held_out_axes": axis}
        files.append(output / "circuits" / f"held-out-{axis}.yaml")
        variant = Circuit(
            f"held-out-{axis}", circuit.roles, probe, circuit.behaviour, circuit.source
        )
        save_circuit(variant, files[-1])
    for task in options.tasks:
        runs = {name: output / name for name in names if name.startswith(task)}
        checkpoints = ",".join(f"{name}:{folder / 'model'}" for name, folder in runs.items())
        circuitkeep(
            "compare",
            f"base={options.model}",
            f"checkpoints={{{checkpoints}}}",
            f"circuits=[{','.join(map(str, files))}]",
            f"evals.datasets.shakespeare={options.text}",
            f"output={output / task}",
        )
        report = json.loads((output / task / "report.json").read_text())
        print(f"\n{table(report, runs, TASKS[task])}")


def table(report: dict, runs: dict[str, Path], measure: str) -> str:
    """Markdown: a row for each condition, its seeds side by side."""
    kinds = [(axis, "behaviour") for axis in AXES]
    kinds += [("templates", "causal"), ("templates", "identity")]
    columns = [f"{kind}, held-out {AXES[axis]}" for axis, kind in kinds]
    columns = ["run", *columns, measure, "Shakespeare, nats"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for condition in CONDITIONS:
        chosen = [c for c in report["checkpoints"] if c["name"].split("/")[1] == condition]
        cells = [
            " ".join(
                f"{c['circuits'][f'held-out-{axis}'][f'{kind}_retention']:.3f}" for c in chosen
            )
            for axis, kind in kinds
        ]
        cells.append(" ".join(f"{last(runs[c['name']], measure):.3f}" for c in chosen))
        nats = (c["capability"]["shakespeare"]["loss_nats"] for c in chosen)
        cells.append(" ".join(f"{value:.2f}" for value in nats))
        lines.append(f"| {condition} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def last(folder: Path, measure: str) -> float:
    """The last value that a run logged of a measure."""
    (path,) = folder.glob("**/metrics.csv")
    with path.open() as file:
        return [float(row[measure]) for row in csv.DictReader(file) if row[measure]][-1]


if __name__ == "__main__":
    main()
