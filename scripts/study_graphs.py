"""Does an attribution graph predict interventions, and does it stay the same?

``faithfulness``: on prompts of the name-copying probe (held-out templates and names, up to where
the name comes again) and on samples of the model's own, interventions on features, heads, edges
and paths: what the graph predicts beside what the replacement model and the true model do, with
attention held and free. ``stability``: overlap of graphs across prompts, probe seeds, two
transcoders and checkpoints. Prints Markdown tables; prompts that are there already are kept.

    python scripts/study_graphs.py faithfulness --model DIRECTORY --transcoder DIRECTORY
    python scripts/study_graphs.py stability --model DIRECTORY --transcoder DIRECTORY \
        --other DIRECTORY --checkpoints plain=DIRECTORY guarded=DIRECTORY --text tinyshakespeare.txt
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, get_args

import torch
from rich.progress import track
from study_graphs_report import print_faithfulness, print_matching, print_stability

from circuitkeep.capture import Backend, attach
from circuitkeep.capture.models import load_model, load_tokenizer
from circuitkeep.cli.settings import find_circuit
from circuitkeep.files import replacing
from circuitkeep.graphs import Graph
from circuitkeep.graphs.changes import clean_run
from circuitkeep.graphs.choice import chosen_interventions
from circuitkeep.graphs.faithfulness import measure
from circuitkeep.graphs.influence import graph_scores
from circuitkeep.graphs.matching import match_features
from circuitkeep.graphs.stability import (
    Align,
    Shares,
    compare,
    mean_shares,
    relabelled,
    shares,
    shuffled_labels,
)
from circuitkeep.graphs.trace import trace
from circuitkeep.probing import probe_rows
from circuitkeep.transcoders.harvest import run
from circuitkeep.transcoders.quality import measure_quality
from circuitkeep.transcoders.rows import own_rows, until_end
from circuitkeep.transcoders.storage import load_transcoder

CIRCUIT = "stories260k-name-copying"
SEEDS, PER_SEED = 4, 15
NULLS = 5
"""Draws of a null for each graph."""


@dataclass(frozen=True)
class Prompt:
    """One prompt of the study.

    Attributes:
        kind: ``names`` or ``samples``.
        seed: Of the probe.
        family: Which template.
        tokens: BOS included.
        answer: The token that should come next, if that is known.
    """

    kind: str
    seed: int
    family: int
    tokens: tuple[int, ...]
    answer: int | None = None


def main() -> None:
    """Run what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=("faithfulness", "stability"))
    parser.add_argument("--model", type=Path, required=True, help="directory of stories260k")
    parser.add_argument("--transcoder", type=Path, required=True)
    parser.add_argument("--other", type=Path, help="a transcoder of another seed")
    parser.add_argument("--checkpoints", nargs="*", default=[], metavar="NAME=DIRECTORY")
    parser.add_argument("--text", type=Path, help="what the checkpoints were trained on")
    parser.add_argument("--prompts", type=int, default=30, help="of each kind")
    parser.add_argument("--output", type=Path, default=Path("outputs/graphs"))
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    backend, tokenizer = attach(load_model(options.model)), load_tokenizer(options.model)
    names = name_prompts(backend, tokenizer)
    samples = sample_prompts(backend, tokenizer, options.prompts)
    if options.study == "faithfulness":
        faithfulness(options, backend, tokenizer, [*names[: options.prompts], *samples])
    else:
        stability(options, backend, tokenizer, names, samples)


def name_prompts(backend: Backend, tokenizer: Any) -> list[Prompt]:
    """Different prompts for each seed of the probe, up to where the name comes again."""
    circuit, found, seen = find_circuit(CIRCUIT), [], set()
    for seed in range(SEEDS):
        batch = probe_rows(circuit, backend, tokenizer, "held_out", 400, 10_000 + seed)
        own: list[Prompt] = []
        for row in range(len(batch)):
            first = int((batch.answer_row == row).nonzero()[0])
            end = int(batch.answer_position[first]) + 1
            tokens = tuple(batch.tokens[row, :end].tolist())
            answer = int(batch.answer[first])
            if (tokens, answer) not in seen and len(own) < PER_SEED:
                seen.add((tokens, answer))
                assert batch.family is not None
                own.append(Prompt("names", seed, int(batch.family[row]), tokens, answer))
        found += own
    return found


def sample_prompts(backend: Backend, tokenizer: Any, count: int) -> list[Prompt]:
    """The beginnings of the model's own samples, 24 to 48 tokens long."""
    rows = own_rows(backend, tokenizer, 2 * count, 64, seed=4242)
    generator = torch.Generator().manual_seed(0)
    found = []
    for tokens, mask in zip(rows.tokens, rows.mask, strict=True):
        length = int(torch.randint(24, 49, (), generator=generator))
        # The token after the prompt is the sample's own.
        if int(mask.sum()) > length + 1 and len(found) < count:
            answer = int(tokens[length])
            found.append(Prompt("samples", 0, 0, tuple(tokens[:length].tolist()), answer))
    return found


def fingerprint(*modules: torch.nn.Module) -> str:
    """Of all weights, so that figures of other ones are never taken for these."""
    digest = hashlib.sha256()
    for module in modules:
        for value in module.state_dict().values():
            digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:12]


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What is in a file; made and written first if it is not there."""
    if not path.is_file():
        made = make()
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(made))
    return json.loads(path.read_text())


# Faithfulness -----------------------------------------------------------------------------------


def faithfulness(
    options: argparse.Namespace, backend: Backend, tokenizer: Any, prompts: Sequence[Prompt]
) -> None:
    """One file per prompt, then the tables."""
    transcoder = load_transcoder(options.transcoder)
    folder = options.output / "faithfulness" / fingerprint(backend.model, transcoder)

    def one(prompt: Prompt) -> dict[str, Any]:
        tokens = torch.tensor(prompt.tokens)
        graph = trace(backend, prompt.tokens, transcoder, text=lambda t: tokenizer.decode([t]))
        clean = clean_run(backend, transcoder, tokens)
        chosen = chosen_interventions(clean, graph)
        rows = [row for kind in chosen.values() for row in kind]
        found = measure(clean, graph, rows)
        return {
            "prompt": asdict(prompt),
            "text": tokenizer.decode(prompt.tokens),
            "kinds": [kind for kind, own in chosen.items() for _ in own],
            "interventions": [asdict(row[0]) for row in rows],
            "logits": [node.index for node in graph.nodes if node.kind == "logit"],
            "nodes": len(graph),
            "features": int(graph.of_kind("feature").sum()),
            "scores": asdict(graph_scores(graph)),
            "effects": {name: values.tolist() for name, values in found.items()},
        }

    records = [
        kept(folder / f"{number}.json", partial(one, prompt))
        for number, prompt in enumerate(track(prompts, "tracing and intervening"))
    ]
    print_faithfulness(records)


# Stability --------------------------------------------------------------------------------------


def stability(
    options: argparse.Namespace,
    backend: Backend,
    tokenizer: Any,
    names: Sequence[Prompt],
    samples: Sequence[Prompt],
) -> None:
    """Across transcoders and checkpoints (a file per prompt), across prompts, then the tables."""
    transcoder = load_transcoder(options.transcoder)
    checkpoints = {
        name: attach(load_model(Path(path)))
        for name, _, path in (pair.partition("=") for pair in options.checkpoints)
    }
    other = load_transcoder(options.other) if options.other else None
    used = [backend.model, transcoder, *(model.model for model in checkpoints.values())]
    used += [] if other is None else [other]
    folder = options.output / "stability" / fingerprint(*used)
    matching = None
    rows = own_rows(backend, tokenizer, 128, 128, seed=777)
    if other is not None:
        streams, _ = run(backend, rows.tokens)
        read = streams[:, rows.mask]
        matching = match_features(transcoder.encode(read), other.encode(read))
        print_matching(matching)
    drawn = {
        kind: own_rows(model, tokenizer, 128, 128, seed=778)
        for kind, model in {"base": backend, **checkpoints}.items()
    }
    texts = {"base's samples": rows}
    if options.text:
        texts["text"] = text_rows(options.text, tokenizer)

    def quality(name: str, model: Backend) -> dict[str, Any]:
        every = {**texts, "own samples": drawn[name]}
        return {
            kind: measure_quality(model, transcoder, *of).summary() for kind, of in every.items()
        }

    qualities = {
        name: kept(folder / f"quality-{name}.json", partial(quality, name, model))
        for name, model in track({"base": backend, **checkpoints}.items(), "measuring quality")
    }
    prompts = [*names[: options.prompts], *samples]

    def one(prompt: Prompt) -> dict[str, Any]:
        graph = trace(backend, prompt.tokens, transcoder)
        own = both_ways(graph)
        found: dict[str, Any] = {"itself, labels shuffled": shuffles(own, own)}
        if other is not None and matching is not None:
            seen = both_ways(trace(backend, prompt.tokens, other))
            for least in (0.0, 0.5, 0.8):
                matched = [relabelled(of, matching.labels(least)) for of in seen]
                found[f"other transcoder, matched at {least}"] = [overlaps(own, matched)]
            matched = [relabelled(of, matching.labels()) for of in seen]
            found["other transcoder, matched at random"] = shuffles(own, matched)
        record = {"prompt": asdict(prompt), "base": about(backend, prompt, graph)}
        for name, model in checkpoints.items():
            seen = trace(model, prompt.tokens, transcoder)
            found[name] = [overlaps(own, both_ways(seen))]
            record[name] = about(model, prompt, seen)
        return {**record, "overlaps": found}

    records = [
        kept(folder / f"{number}.json", partial(one, prompt))
        for number, prompt in enumerate(track(prompts, "tracing models and transcoders"))
    ]
    pairs = kept(
        folder / "pairs.json",
        lambda: across_prompts([*names, *samples], lambda p: trace(backend, p.tokens, transcoder)),
    )
    print_stability(records, pairs, qualities, list(checkpoints))


def both_ways(graph: Graph) -> list[Shares]:
    """Aligned by positions, and not."""
    return [shares(graph, align) for align in get_args(Align)]


def overlaps(a: Sequence[Shares], b: Sequence[Shares]) -> dict[str, Any]:
    """Overlap by both ways."""
    pairs = zip(get_args(Align), a, b, strict=True)
    return {align: asdict(compare(one, other)) for align, one, other in pairs}


def shuffles(a: Sequence[Shares], b: Sequence[Shares]) -> list[dict[str, Any]]:
    """What labels given at random would leave."""
    return [
        overlaps(a, [shuffled_labels(x, y, seed) for x, y in zip(a, b, strict=True)])
        for seed in range(NULLS)
    ]


def about(model: Backend, prompt: Prompt, graph: Graph) -> dict[str, Any]:
    """What the model makes of the prompt's answer, and the graph's scores."""
    with torch.no_grad():
        logits = model.forward(
            torch.tensor([prompt.tokens]), torch.tensor([len(prompt.tokens) - 1])
        )
    assert logits is not None
    said = logits[0, 0].log_softmax(-1)[prompt.answer].item()
    return {"answer_log_prob": said, "nodes": len(graph), **asdict(graph_scores(graph))}


def across_prompts(
    prompts: Sequence[Prompt], make: Callable[[Prompt], Graph]
) -> dict[str, list[dict[str, Any]]]:
    """Overlaps of graphs of different prompts, by what the prompts share."""
    graphs = [both_ways(make(prompt)) for prompt in track(prompts, "tracing prompts")]
    found: dict[str, list[dict[str, Any]]] = {}

    def keep(name: str, a: Shares, b: Shares, *pair: int) -> None:
        found.setdefault(name, []).append({"pair": pair, **asdict(compare(a, b))})

    few = [place for place, prompt in enumerate(prompts) if prompt.seed < 2]
    for i, j in track(list(combinations(few, 2)), "comparing prompts"):
        a, b = prompts[i], prompts[j]
        (at_i, counts_i), (at_j, counts_j) = graphs[i], graphs[j]
        if a.kind != b.kind:
            name = "a name prompt and a sample"
        elif a.kind == "samples":
            name = "two samples"
        elif a.family != b.family:
            name = "name prompts, another template"
        else:
            name = "name prompts, another name"
            if len(a.tokens) == len(b.tokens):
                keep(f"{name}, aligned by positions", at_i, at_j, i, j)
        keep(name, counts_i, counts_j, i, j)
    counts = [counted for _, counted in graphs]
    of_seeds: dict[tuple[str, int], list[Shares]] = {}
    for place, prompt in enumerate(prompts):
        # Samples have no seeds of their own: they are dealt out in turn.
        group = prompt.seed if prompt.kind == "names" else place % 2
        of_seeds.setdefault((prompt.kind, group), []).append(counts[place])
    means = {key: mean_shares(some) for key, some in of_seeds.items()}
    for (one, a), (other, b) in combinations(means.items(), 2):
        kinds = sorted({one[0], other[0]})
        keep(f"mean graphs of two seeds: {' and '.join(kinds)}", a, b)
    return found


def text_rows(path: Path, tokenizer: Any) -> Any:
    """128 rows of 128 tokens from the end of a text, BOS first."""
    text = path.read_text(encoding="utf-8")
    numbers = tokenizer(text[-len(text) // 10 :], add_special_tokens=False, verbose=False).input_ids
    tokens = torch.tensor(numbers)[: 128 * 127].view(128, 127)
    tokens = torch.cat([torch.full((128, 1), tokenizer.bos_token_id), tokens], 1)
    return tokens, until_end(tokens, [])


if __name__ == "__main__":
    main()
