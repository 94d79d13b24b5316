"""What a transcoder of a small model reaches: by width, activation, sparsity, steps, reach.

Trains each of the settings below by ``circuitkeep transcode train`` on the model's own samples, and
prints a table. Runs that are there already are not repeated; one that was cut off goes on. The text
is drawn once. The times, by the clock and of one core, are without it.

    python scripts/study_transcoders.py MODEL OUTPUT [--only NAME ...] [--table]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

COMMON = ("steps=600", "features=512", "data.rows=1024", "trainer.enable_progress_bar=false")
RUNS: dict[str, tuple[str, ...]] = {
    "batchtopk": (),
    "topk": ("activation=topk",),
    "jumprelu": ("activation=jumprelu", "task.sparsity=0.008"),
    "per layer": ("cross_layer=false",),
    "normalized": ("reads=normalized",),
    "256 features": ("features=256",),
    "1024 features": ("features=1024",),
    "150 steps": ("steps=150",),
    "300 steps": ("steps=300",),
    "1200 steps": ("steps=1200",),
    "k 7": ("k=7",),
    "k 28": ("k=28",),
    "revived": ("task.revive=0.03", "task.dead_after=50000"),
    "jumprelu, sparser": ("activation=jumprelu", "task.sparsity=0.016"),
    "2048 features": ("features=2048",),
}
"""What each run changes."""


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--table", action="store_true", help="train nothing")
    given = parser.parse_args()
    for name in [] if given.table else given.only:
        _train(given.model, given.output, name)
    reports = {name: given.output / _folder(name) / "report.json" for name in RUNS}
    print(table({n: json.loads(p.read_text("utf-8")) for n, p in reports.items() if p.is_file()}))


def table(reports: dict[str, dict[str, Any]]) -> str:
    """One line per run, in Markdown."""
    lines = [
        "| run | explained variance | loss recovered | active per layer | dead | clock | core |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        quality = report["quality"]
        active = quality["active_per_token"]
        cells = (
            name,
            f"{quality['mean_explained_variance']:.3f}",
            f"{quality['recovered']:.3f}",
            f"{min(active):.1f} to {max(active):.1f}",
            f"{quality['mean_dead']:.1%}",
            f"{report['wall_s']:.0f} s" + (" (resumed)" if report["resumed"] else ""),
            f"{report['process_s']:.0f} s",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _train(model: str, output: Path, name: str) -> None:
    folder = output / _folder(name)
    if (folder / "report.json").is_file():
        return
    drawn = output / "tokens.safetensors"
    if drawn.is_file() and not (folder / drawn.name).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(drawn, folder)
    settings = [f"model.path={model}", f"output={folder}", *COMMON, *RUNS[name]]
    code = "from circuitkeep.cli import main; main()"
    subprocess.run([sys.executable, "-c", code, "transcode", "train", *settings], check=True)
    if not drawn.is_file():
        shutil.copy(folder / drawn.name, drawn)


def _folder(name: str) -> str:
    return name.replace(" ", "-").replace(",", "")


if __name__ == "__main__":
    main()
