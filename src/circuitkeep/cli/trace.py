"""``circuitkeep trace``: what leads to what a model says after a prompt, as a graph."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from circuitkeep.capture import Backend, attach, is_bridge
from circuitkeep.capture.fingerprints import fingerprint_model
from circuitkeep.capture.sampling import special_tokens
from circuitkeep.capture.weights import token_weights
from circuitkeep.cli.mistakes import check_arguments
from circuitkeep.cli.settings import construct
from circuitkeep.cli.terminal import told
from circuitkeep.files import replacing
from circuitkeep.graphs.extras import Extras, edges_of_heads, heads_of_edges, reasoned
from circuitkeep.graphs.features import logit_effects, top_contexts
from circuitkeep.graphs.frontend import frontend_json, graph_metadata
from circuitkeep.graphs.frozen import freeze
from circuitkeep.graphs.graph import Graph
from circuitkeep.graphs.influence import Pruned, prune
from circuitkeep.graphs.page import LISTED, render_page
from circuitkeep.graphs.terminal import tables
from circuitkeep.graphs.trace import trace
from circuitkeep.graphs.wording import explained
from circuitkeep.pages.attention import token_string
from circuitkeep.transcoders import CrossLayerTranscoder
from circuitkeep.transcoders.rows import own_rows
from circuitkeep.transcoders.storage import about_transcoder, load_transcoder


def run(config: DictConfig) -> None:
    """Print what was found, and write the graph, the frontend's JSON and the page."""
    _check(config)
    model, tokenizer = construct(config.model)
    if is_bridge(model):
        raise ValueError(
            "model=bridge is for scan: a graph is traced from a model of transformers, by model=hf"
        )
    backend = attach(model)
    text = partial(token_string, tokenizer)
    tokens = prompt_tokens(config.prompt, tokenizer, backend, config.bos)
    logits = None if config.logits is None else _tokens_of(config.logits, backend, text)
    transcoder = _transcoder(config, backend)
    status = Console(stderr=True)
    with told(status, "tracing") as tell:
        graph = trace(
            backend,
            tokens,
            transcoder,
            logits=logits,
            share=float(config.share),
            max_features=config.max_features,
            text=text,
            batch=config.batch,
            progress=tell,
        )
    # A model that circuitkeep trains itself has no path in the config; it knows where it lies.
    path = str(config.model.get("path") or model.name_or_path)
    graph = replace(graph, model=path, transcoder=config.transcoder)
    pruned = prune(graph, float(config.prune.nodes), float(config.prune.edges))
    extras = _extras(config, backend, tokenizer, transcoder, graph, pruned, status)
    out = Console()
    for table in tables(graph, pruned, extras, config.top):
        out.print(table)
    if transcoder is None and bool(graph.edges[:, graph.of_kind("error")].any()):
        print("\nwithout a transcoder, all that MLPs add is error: set transcoder=FOLDER")
    output = Path(config.output)
    _write(output, config, graph, pruned, extras)
    print(
        f"\nthe graph is in {output / 'graph.safetensors'}, to look at in {output / 'index.html'}"
    )


def prompt_tokens(prompt: Any, tokenizer: Any, backend: Backend, bos: bool) -> list[int]:
    """A prompt's tokens, BOS in front unless the model has none or `bos` is false.

    Args:
        prompt: A text, or token numbers.
        tokenizer: None is for token numbers.
        backend: The model.
        bos: Whether BOS is to stand in front.

    Raises:
        ValueError: If there is nothing to trace, or a text without a tokenizer.
    """
    if isinstance(prompt, (list, ListConfig)):
        wrong = [token for token in prompt if isinstance(token, bool) or not isinstance(token, int)]
        if wrong:
            raise ValueError(f"prompt: {wrong[0]!r} is no token number; give a text, or [3,5,7]")
        tokens = list(prompt)
    elif tokenizer is None:
        raise ValueError(
            f"prompt={prompt!r} is a text, and the model has no tokenizer: set "
            "model.tokenizer=PATH, or give token numbers, as in prompt=[3,5,7]"
        )
    else:
        tokens = tokenizer(str(prompt))["input_ids"]
    first, special = special_tokens(backend.model, tokenizer)
    if not set(tokens) - special:
        raise ValueError(f"the prompt is empty ({prompt!r}): give some text")
    return [first, *tokens] if bos and first is not None and tokens[0] != first else tokens


def _check(config: DictConfig) -> None:
    """Refuse settings of a wrong kind before anything is loaded."""
    check_arguments(trace, {name: config[name] for name in ("share", "max_features", "batch")})
    check_arguments(prune, {name: config.prune[name] for name in ("nodes", "edges")})
    least = {
        "heads": 0,
        "reasons": 0,
        "top": 1,
        "contexts.rows": 0,
        "contexts.length": 2,
        "contexts.top": 1,
    }
    for name, smallest in least.items():
        value = OmegaConf.select(config, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < smallest:
            raise ValueError(f"{name}={value}: give a whole number from {smallest} on")


def _tokens_of(wanted: Any, backend: Backend, text: Callable[[int], str]) -> list[int]:
    """Tokens by their text or their number."""
    if not isinstance(wanted, ListConfig):
        raise ValueError(f'logits={wanted!r}: give a list, as in logits=[" she"," Lily"]')
    named: dict[str, int] = {}
    if any(isinstance(each, str) for each in wanted):
        named = {text(token): token for token in reversed(range(backend.vocab_size))}
    missing = [each for each in wanted if isinstance(each, str) and each not in named]
    if missing:
        other = next(
            (each for each in (f" {missing[0]}", missing[0].strip()) if each in named), None
        )
        raise ValueError(
            f"logits: {missing[0]!r} is not one token of this tokenizer"
            + (f"; did you mean {other!r}?" if other else "")
        )
    return [named[each] if isinstance(each, str) else each for each in wanted]


def _transcoder(config: DictConfig, backend: Backend) -> CrossLayerTranscoder | None:
    if config.transcoder is None:
        return None
    folder = Path(config.transcoder)
    transcoder = load_transcoder(folder).to(backend.device)
    trained_on = about_transcoder(folder).get("fingerprint")
    if config.same_model and trained_on not in (None, fingerprint_model(backend.model)):
        raise ValueError(
            f"the transcoder in {folder} was trained on another model "
            f"({about_transcoder(folder).get('model', 'unknown')}); same_model=false traces with "
            "it all the same, as with a base's on the fine-tuned model"
        )
    return transcoder


def _extras(
    config: DictConfig,
    backend: Backend,
    tokenizer: Any,
    transcoder: CrossLayerTranscoder | None,
    graph: Graph,
    pruned: Pruned,
    status: Console,
) -> Extras:
    """What the page and the tables tell beside the graph."""
    kept = [graph.nodes[place] for place in pruned.nodes.nonzero()[:, 0].tolist()]
    features = [(node.layer, node.index) for node in kept if node.kind == "feature"]
    heads, head_edges = {}, {}
    if config.heads:
        frozen = freeze(backend, torch.tensor(graph.tokens, device=backend.device))
        head_edges = edges_of_heads(frozen, graph, LISTED)
        with told(status, "finding why heads attend") as tell:
            head_edges = reasoned(backend, frozen, transcoder, head_edges, config.reasons, tell)
        with told(status, "finding the heads of edges") as tell:
            heads = heads_of_edges(frozen, transcoder, graph, pruned, config.heads, progress=tell)
    contexts, effects = {}, {}
    if transcoder is not None:
        effects = logit_effects(transcoder, token_weights(backend, fold_norm=True), features)
        wanted = config.contexts
        if wanted.rows and features:
            length = min(wanted.length, backend.context_length)
            with told(status, "drawing texts") as tell:
                rows = own_rows(backend, tokenizer, wanted.rows, length, wanted.seed, tell)
            counts = rows.mask & (torch.arange(length) > 0)
            with told(status, "reading features in texts") as tell:
                contexts = top_contexts(
                    *(transcoder, backend, rows.tokens, features, wanted.top, counts),
                    progress=tell,
                )
    text = partial(token_string, tokenizer)
    return Extras(explained(graph, pruned), heads, head_edges, contexts, effects, text)


def _write(output: Path, config: DictConfig, graph: Graph, pruned: Pruned, extras: Extras) -> None:
    """The graph, what the public frontend reads, and the page; each whole or not at all."""
    labels = {
        feature: ", ".join(extras.word(token) for token, _ in effects.promoted[:3])
        for feature, effects in extras.effects.items()
    }
    found = frontend_json(
        graph,
        pruned,
        slug="graph",
        thresholds={"node_threshold": config.prune.nodes, "edge_threshold": config.prune.edges},
        labels={feature: f"promotes {words}" for feature, words in labels.items()},
    )
    metadata = graph_metadata(found, output / "graph-metadata.json")
    graph.save(output / "graph.safetensors")
    for name, text in (
        ("graph.json", json.dumps(found, allow_nan=False)),
        ("graph-metadata.json", json.dumps(metadata, allow_nan=False)),
        ("index.html", render_page(graph, pruned, extras)),
    ):
        with replacing(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
