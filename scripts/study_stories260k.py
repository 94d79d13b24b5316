"""Does guarding the named heads keep name copying in stories260k, and is it the heads that do it?

Fine-tunes the model on Shakespeare for 150 steps of 16 x 128 tokens, for 3 seeds: unguarded; with
the named heads' patterns and outputs guarded; with the next-token distribution guarded beside
them; and with plain self-distillation. Both guards are also put on every choice of three other
heads of the same layer. Compares all of them on held-out templates, held-out names, and both, and
prints a Markdown table. Runs that are there already are not repeated.

    python scripts/study_stories260k.py MODEL TEXT [--output outputs/stories260k] [--jobs 2]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from circuitkeep.circuits import Circuit, Head, Role, save_circuit
from circuitkeep.cli.settings import find_circuit

SEEDS = (0, 1, 2)
EXPERIMENT = "experiment=stories260k"
GUARDS = {"heads": "penalty=pattern_output", "heads-behaviour": "penalty=pattern_output_behaviour"}
RIVALS = {
    "unregularized": ["penalty=none"],
    # At two weights, so that it can be compared at about the same cost in capability.
    **{
        f"self-distillation-{weight}": [
            "penalty=behaviour_only",
            "probe.answers=all",
            f"penalty.weight={weight}",
        ]
        for weight in (0.3, 1)
    },
}
AXES = {"both": "templates and names", "templates": "templates", "fillers": "names"}


def main() -> None:
    """Run what is missing, compare, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="directory of stories260k")
    parser.add_argument("text", type=Path, help="tinyshakespeare.txt")
    parser.add_argument("--output", type=Path, default=Path("outputs/stories260k"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    output = options.output
    circuit = find_circuit("stories260k-name-copying")

    runs = {}
    for seed in SEEDS:
        runs |= {f"{name}/{seed}": (keys, seed) for name, keys in RIVALS.items()}
        runs |= {f"named-{name}/{seed}": ([penalty], seed) for name, penalty in GUARDS.items()}
    for draw, heads in enumerate(other_heads(circuit)):
        file = output / "circuits" / f"random-{draw}.yaml"
        save_circuit(with_heads(circuit, heads, f"random-{draw}"), file)
        for name, penalty in GUARDS.items():
            keys = [penalty, f"circuit={file}"]
            runs[f"random-{name}/{draw}"] = (keys, SEEDS[draw % len(SEEDS)])

    def run(item: tuple[str, tuple[list[str], int]]) -> None:
        name, (keys, seed) = item
        if not (output / name / "model").is_dir():
            common = [f"model.path={options.model}", f"data.train={options.text}", f"seed={seed}"]
            circuitkeep(
                "train",
                EXPERIMENT,
                *keys,
                *common,
                "trainer.accelerator=cpu",
                "trainer.enable_progress_bar=false",
                # Everything is measured afterwards, on more rows.
                "callbacks.monitor=null",
                "+trainer.limit_val_batches=0",
                f"output={output / name}",
            )
        print(name, flush=True)

    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(run, runs.items()))

    files = []
    for axis in AXES:
        probe = {**circuit.probe, "held_out_axes": axis}
        files.append(output / "circuits" / f"held-out-{axis}.yaml")
        variant = Circuit(
            f"held-out-{axis}", circuit.roles, probe, circuit.behaviour, circuit.source
        )
        save_circuit(variant, files[-1])
    checkpoints = ",".join(f"{name}:{output / name / 'model'}" for name in runs)
    circuitkeep(
        "compare",
        f"base={options.model}",
        f"checkpoints={{{checkpoints}}}",
        f"circuits=[{','.join(map(str, files))}]",
        f"evals.datasets.shakespeare={options.text}",
        f"output={output}",
    )
    print(table(json.loads((output / "report.json").read_text())))


def other_heads(circuit: Circuit) -> list[tuple[Head, ...]]:
    """Every choice of as many other heads of the circuit's layer (there are 8)."""
    (layer,) = {head.layer for head in circuit.heads}
    others = [Head(layer, index) for index in range(8) if Head(layer, index) not in circuit.heads]
    return list(itertools.combinations(others, len(circuit.heads)))


def with_heads(circuit: Circuit, heads: tuple[Head, ...], name: str) -> Circuit:
    """The circuit with other heads in its one role."""
    role = Role(circuit.roles[0].name, heads)
    return Circuit(name, (role,), circuit.probe, circuit.behaviour, "matched random heads")


def circuitkeep(*arguments: str) -> None:
    """Run the console command in a process of its own; a failure ends the study."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "circuitkeep", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)}\n{done.stderr}")


def table(report: dict) -> str:
    """Markdown: per condition, the mean over its runs with a 95% bootstrap interval."""
    plain = {c["name"]: shakespeare(c) for c in report["checkpoints"]}
    columns = ["condition", "runs", *(f"behaviour, held-out {text}" for text in AXES.values())]
    columns += ["causal, both", "identity, both", "Shakespeare, nats"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for name in dict.fromkeys(c["name"].split("/")[0] for c in report["checkpoints"]):
        chosen = [c for c in report["checkpoints"] if c["name"].split("/")[0] == name]
        cells = [
            percent([c["circuits"][f"held-out-{axis}"]["behaviour_retention"] for c in chosen])
            for axis in AXES
        ]
        for kind in ("causal_retention", "identity_retention"):
            cells.append(percent([c["circuits"]["held-out-both"][kind] for c in chosen]))
        # Paired with the unguarded run of the same seed, which saw the same batches.
        seeds = [SEEDS[int(c["name"].split("/")[1]) % len(SEEDS)] for c in chosen]
        costs = [
            shakespeare(c) - plain[f"unregularized/{seed}"]
            for c, seed in zip(chosen, seeds, strict=True)
        ]
        mean, low, high = interval(costs)
        cells.append(
            f"{np.mean([shakespeare(c) for c in chosen]):.3f}; "
            f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        )
        lines.append(f"| {name} | {len(chosen)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shakespeare(checkpoint: dict) -> float:
    """Held-out loss, in nats per token."""
    return checkpoint["capability"]["shakespeare"]["loss_nats"]


def percent(values: list[float]) -> str:
    """Mean and interval of retentions."""
    mean, low, high = interval(values)
    return f"{100 * mean:.0f}% [{100 * low:.0f}, {100 * high:.0f}]"


def interval(values: list[float]) -> tuple[float, float, float]:
    """Mean with its 95% bootstrap interval over runs."""
    drawn = np.random.default_rng(0).choice(values, (10_000, len(values))).mean(1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.mean(values)), float(low), float(high)


if __name__ == "__main__":
    main()
