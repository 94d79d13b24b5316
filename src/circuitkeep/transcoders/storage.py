"""Transcoders on disk, in the layout of circuit-tracer wherever it can hold them."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from circuitkeep.transcoders.transcoder import CrossLayerTranscoder, TranscoderConfig

ABOUT, CONFIG, OWN = "transcoder.json", "config.yaml", "transcoder.safetensors"
INPUT_HOOK, OUTPUT_HOOK = "hook_resid_mid", "hook_mlp_out"


def unmappable(config: TranscoderConfig) -> str | None:
    """Why circuit-tracer cannot hold such a transcoder; None if it can."""
    if config.activation == "topk":
        return "it knows no activation that looks at all features of a token (topk)"
    if config.reads == "normalized":
        return "it knows no features that read the stream divided by its root mean square"
    return None


def save_transcoder(
    transcoder: CrossLayerTranscoder, folder: Path, about: Mapping[str, Any]
) -> None:
    """Write a folder, so that it appears whole or not at all; an old one is replaced.

    Where circuit-tracer can hold the transcoder, in its layout: per layer i
    ``W_enc_{i}.safetensors`` (``W_enc_{i}``, ``b_enc_{i}``, ``b_dec_{i}`` and, unless all
    thresholds are 0, ``threshold_{i}``) and ``W_dec_{i}.safetensors`` (``W_dec_{i}``, to all
    layers from i on), and ``config.yaml``. Where it cannot, in one file of our own, which no other
    program takes for something else. ``transcoder.json`` is ours in either case.

    Args:
        transcoder: In the model's units.
        folder: Where to.
        about: Where it came from, in types for JSON; ``model`` is its name.

    Raises:
        OSError: If it cannot be written, or the disk is full.
    """
    folder = Path(folder)
    why_not = unmappable(transcoder.config)
    content = {
        "config": asdict(transcoder.config),
        "circuit_tracer": "readable" if why_not is None else f"not readable: {why_not}",
        **about,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        if why_not is None:
            for name, tensors in _files(transcoder).items():
                save_file(tensors, temporary / name)
            hooks = {"feature_input_hook": INPUT_HOOK, "feature_output_hook": OUTPUT_HOOK}
            named = {
                "model_name": str(about.get("model", "")),
                "model_kind": "cross_layer_transcoder",
            }
            (temporary / CONFIG).write_text(yaml.safe_dump(named | hooks), encoding="utf-8")
        else:
            own = {name: value.contiguous() for name, value in transcoder.state_dict().items()}
            save_file(own, temporary / OWN)
        text = json.dumps(content, indent=1)
        (temporary / ABOUT).write_text(text, encoding="utf-8")
        temporary.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        temporary.rename(folder)
    except SafetensorError as error:  # which is no OSError, even where the disk is full
        raise OSError(f"the transcoder was not written to {folder}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _files(transcoder: CrossLayerTranscoder) -> dict[str, dict[str, Tensor]]:
    config = transcoder.config
    jumps = bool((transcoder.threshold != 0).any())
    files: dict[str, dict[str, Tensor]] = {}
    for i, decoders in enumerate(transcoder.W_dec):
        to_all = decoders.new_zeros(config.n_features, config.n_layers - i, config.d_model)
        to_all[:, : decoders.shape[1]] = decoders.detach()
        encoders = {
            f"W_enc_{i}": transcoder.W_enc[i],
            f"b_enc_{i}": transcoder.b_enc[i],
            f"b_dec_{i}": transcoder.b_dec[i],
            **({f"threshold_{i}": transcoder.threshold[i].clamp(min=0)} if jumps else {}),
        }
        files[f"W_enc_{i}.safetensors"] = {
            name: value.detach().contiguous() for name, value in encoders.items()
        }
        files[f"W_dec_{i}.safetensors"] = {f"W_dec_{i}": to_all}
    return files


def load_transcoder(folder: Path) -> CrossLayerTranscoder:
    """What `save_transcoder` wrote, or another program in circuit-tracer's layout; fp32.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no transcoder, not a whole one, or one that cannot be held here
            (skip connections, other hooks).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder of a transcoder at {folder}")
    about = about_transcoder(folder)
    try:
        state = load_file(folder / OWN) if (folder / OWN).is_file() else _state(folder)
    except (SafetensorError, KeyError, FileNotFoundError) as error:
        raise ValueError(f"{folder} holds no whole transcoder: {error}") from error
    config = TranscoderConfig(**about["config"]) if "config" in about else _config(state, folder)
    transcoder = CrossLayerTranscoder(config)
    if not config.cross_layer and not (folder / OWN).is_file():
        for layer in range(config.n_layers):
            state[f"W_dec.{layer}"] = state[f"W_dec.{layer}"][:, :1].clone()
    transcoder.load_state_dict(state)
    return transcoder


def about_transcoder(folder: Path) -> dict[str, Any]:
    """What `save_transcoder` was told; empty for one of another program."""
    path = Path(folder) / ABOUT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _state(folder: Path) -> dict[str, Tensor]:
    """The parameters by the names of `CrossLayerTranscoder`."""
    layers = len(list(folder.glob("W_enc_*.safetensors")))
    if layers == 0:
        raise ValueError(f"{folder} holds no transcoder: it has no W_enc_0.safetensors")
    encoders = [load_file(folder / f"W_enc_{i}.safetensors") for i in range(layers)]
    skips = sorted(name for file in encoders for name in file if name.startswith("W_skip"))
    if skips:
        raise ValueError(f"{folder} has skip connections ({skips[0]}), which cannot be held here")
    state = {
        name: torch.stack([file[f"{name}_{i}"] for i, file in enumerate(encoders)]).float()
        for name in ("W_enc", "b_enc", "b_dec")
    }
    thresholds = [file.get(f"threshold_{i}") for i, file in enumerate(encoders)]
    state["threshold"] = torch.stack(
        [
            torch.zeros_like(b) if t is None else t.float()
            for t, b in zip(thresholds, state["b_enc"], strict=True)
        ]
    )
    for i in range(layers):
        state[f"W_dec.{i}"] = load_file(folder / f"W_dec_{i}.safetensors")[f"W_dec_{i}"].float()
    return state


def _config(state: Mapping[str, Tensor], folder: Path) -> TranscoderConfig:
    """Of a transcoder of another program."""
    if (folder / CONFIG).is_file():
        found = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")) or {}
        for key, known in (
            ("feature_input_hook", INPUT_HOOK),
            ("feature_output_hook", OUTPUT_HOOK),
        ):
            if found.get(key, known) != known:
                raise ValueError(
                    f"{folder / CONFIG}: {key}={found[key]} cannot be held, only {known}"
                )
    layers, features, width = state["W_enc"].shape
    activation = "jumprelu" if state["threshold"].any() else "relu"
    return TranscoderConfig(layers, width, features, activation)
