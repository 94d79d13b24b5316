"""Manifolds of what any text tells: position, place in the sentence, length of words and tokens.

On text that the model itself writes, layer by layer, beside a twin of the model with shuffled
weights (which knows of a variable what the tokens alone tell it), with the heads that match each
variable's values with each other, what heads make of the manifolds, and the ways between heads.
Each part is written to OUTPUT/PART.json and read from there if it is there.

    python scripts/study_geometry.py --model MODEL [--rows 512] [--transcoder FOLDER]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from circuitkeep.capture import Backend, attach
from circuitkeep.capture.models import load_model_and_tokenizer
from circuitkeep.capture.shuffled import shuffled_weights
from circuitkeep.circuits import Head, Manifold
from circuitkeep.geometry.alignment import alignments
from circuitkeep.geometry.channels import channels
from circuitkeep.geometry.class_means import class_means
from circuitkeep.geometry.manifolds import manifold_shape
from circuitkeep.geometry.place_cells import tiling
from circuitkeep.geometry.transforms import head_transforms, manifold_parts
from circuitkeep.manifolds import manifold_rows, manifold_samples
from circuitkeep.probes import OwnSamples, ProbeBatch
from circuitkeep.probing import probe_context, with_variables
from circuitkeep.transcoders.storage import load_transcoder

LENGTH, STEP = 128, 4
# The first tokens of a story are nearly always the same ones.
RANGES = {
    "position": (16, 111),
    "sentence-position": (0, 19),
    "sentence-words": (1, 14),
    "word-position": (0, 3),
    "token-length": (1, 6),
}


def manifolds(layer: int) -> list[Manifold]:
    """One of each variable."""
    found = []
    for variable, values in RANGES.items():
        step = STEP if variable == "position" else 1
        classes = (values[1] - values[0]) // step + 1
        found.append(Manifold(variable, variable, layer, values, step, min(6, classes - 1)))
    return found


def shapes(backend: Backend, batch: ProbeBatch) -> list[dict[str, Any]]:
    """Every variable after every layer, in the model and in its twin."""
    found = []
    for layer in range(-1, backend.n_layers):
        own = _shapes(backend, batch, layer)
        with shuffled_weights(backend.model, seed=0):
            twin = _shapes(backend, batch, layer)
        for name, shape in own.items():
            figures = {
                **shape,
                "twin": twin[name]["rmse"],
                "twin_explained": twin[name]["explained"],
            }
            found.append({"variable": name, "layer": layer, **figures})
    return found


def _shapes(backend: Backend, batch: ProbeBatch, layer: int) -> dict[str, dict[str, Any]]:
    rows = manifold_rows(backend, batch, manifolds(layer))
    samples = manifold_samples(backend, batch, manifolds(layer))
    found = {}
    for name in rows:
        shape = manifold_shape(rows[name], samples[name])
        found[name] = {
            "explained": shape.explained,
            "reliability": shape.reliability,
            "dimensions": [shape.signal_dimension, shape.dimension],
            "turn": shape.signal_turn,
            "dip": shape.ripple.distance,
            "rise": shape.ripple.rise,
            "cycle": shape.fourier[0],
            "rmse": shape.probe.rmse,
            "guessing": shape.probe.guessing,
        }
    return found


def heads(backend: Backend, batches: tuple[ProbeBatch, ProbeBatch]) -> list[dict[str, Any]]:
    """The heads that match a variable's values with each other, of all layers."""
    found, checked = (class_means(backend, batch, manifolds(-1)) for batch in batches)
    every = [Head(layer, i) for layer in range(backend.n_layers) for i in range(backend.n_heads)]
    return [
        {
            "variable": name,
            "head": str(one.head),
            **{key: getattr(one, key) for key in ("correlation", "offset", "held_out", "strength")},
            **{key: getattr(one, key) for key in ("random_mean", "random_limit", "monotone")},
            "boundary": one.is_boundary,
        }
        for name in RANGES
        for one in alignments(
            backend, (found[name], checked[name]), (found[name], checked[name]), every, draws=200
        )
    ]


def transforms(backend: Backend, batch: ProbeBatch) -> list[dict[str, Any]]:
    """What heads make of the manifolds that enter their layer, and what those are made of."""
    found = []
    for layer in range(backend.n_layers):
        means = class_means(backend, batch, manifolds(layer - 1))
        own = [Head(layer, index) for index in range(backend.n_heads)]
        for name, one in means.items():
            made = head_transforms(backend, one, own, draws=100)
            found.append(
                {
                    "variable": name,
                    "layer": layer,
                    "heads": len(made),
                    "keep": sum(each.keeps_shape for each in made),
                    "residual": sum(each.residual for each in made) / len(made),
                    "random": sum(each.random_mean for each in made) / len(made),
                    "parts": [[p.name, p.share] for p in manifold_parts(backend, one)[:5]],
                }
            )
    return found


def ways(backend: Backend) -> dict[str, Any]:
    """The ways between heads."""
    found = channels(backend, top=10, draws=1000)
    return {
        "pairs": found.pairs,
        "overlap": found.overlap,
        "random": found.random_overlap,
        "above": found.above,
        "strongest": [
            [str(one.writer), str(one.reader), one.kind, one.overlap, one.composition, one.z]
            for one in found.strongest
        ],
    }


def cells(backend: Backend, batch: ProbeBatch, folder: str) -> list[dict[str, Any]]:
    """Place cells of every variable among each layer's features."""
    transcoder = load_transcoder(Path(folder))
    found = []
    for layer in range(backend.n_layers):
        for one in manifolds(layer - 1):
            made = tiling(backend, transcoder, batch, one)
            found.append(
                {
                    "variable": one.name,
                    "layer": layer,
                    "cells": len(made.cells),
                    "active": made.active,
                    "covered": made.covered,
                    "widening": made.widening,
                }
            )
    return found


def main() -> None:
    """Measure, and print every part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--transcoder")
    parser.add_argument("--output", type=Path, default=Path("outputs/geometry-study"))
    options = parser.parse_args()
    model, tokenizer = load_model_and_tokenizer(options.model)
    backend = attach(model)
    context = probe_context(backend, tokenizer)

    def rows(split: Any) -> ProbeBatch:
        batch = OwnSamples(length=LENGTH).batch(context, split, options.rows, 0)
        return with_variables(batch, manifolds(-1), context)

    train, held_out = rows("train"), rows("held_out")
    parts: dict[str, Callable[[], Any]] = {
        "shapes": lambda: shapes(backend, held_out),
        "heads": lambda: heads(backend, (train, held_out)),
        "transforms": lambda: transforms(backend, held_out),
        "ways": lambda: ways(backend),
    }
    if options.transcoder:
        parts["cells"] = lambda: cells(backend, held_out, options.transcoder)
    options.output.mkdir(parents=True, exist_ok=True)
    for name, measure in parts.items():
        path = options.output / f"{name}.json"
        if not path.exists():
            with torch.no_grad():
                path.write_text(json.dumps(measure()), encoding="utf-8")
        print(f"\n{name}")
        found = json.loads(path.read_text(encoding="utf-8"))
        for line in found if isinstance(found, list) else found.items():
            print(_rounded(line))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 2)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return value


if __name__ == "__main__":
    main()
