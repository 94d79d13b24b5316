"""Does what a guard holds on its probe hold beyond it? What was tried, side by side, for 3 seeds.

``embedded``: the demo's task. The probe draws from 40 of the 62 content tokens; accuracy of
repeating is measured on segments of those, and of the 22 others. ``stories260k``: Shakespeare,
150 steps. The guard reads samples of the model itself; the name-copying advantage is measured on
held out templates, held-out names, and both. Prints a Markdown table; runs that are there already
are not repeated.

    python scripts/study_beyond.py embedded
    python scripts/study_beyond.py stories260k --model DIRECTORY --text tinyshakespeare.txt
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import embedding

from circuitkeep.files import replacing
from circuitkeep.probes import OwnSamples, Probe, RepeatedTokens

SEEDS = (0, 1, 2)
RESTRICTED = ("40 tokens", "40 tokens, 8 rows", "40 tokens, outputs too", "40 tokens, weights too")
VIRTUAL = {
    "mixtures of the 40 embeddings": "mixed",
    "the 40 embeddings and noise of their length": "noise",
    "mixtures of all embeddings": "mixed of all",
}
EMBEDDED = (
    "no guard",
    *RESTRICTED,
    "40 tokens, all heads",
    *VIRTUAL,
    "own samples",
    "own samples, answers everywhere",
    "all tokens",
)
# Weights of patterns, outputs and next-token KL; probe rows per step; settings of the samples.
STORIES: dict[str, tuple[tuple[float, float, float], int, dict[str, Any]]] = {
    "no guard": ((0, 0, 0), 1, {}),
    "heads and KL, where tokens repeat": ((1, 1, 0.2), 8, {}),
    "the same, pool of 1024": ((1, 1, 0.2), 8, {"pool": 1024}),
    "the same, a fifth of the repeated tokens replaced": ((1, 1, 0.2), 8, {"replaced": 0.2}),
    "KL everywhere, .3": ((0, 0, 0.3), 8, {"answers": "all"}),
    "KL everywhere, 1": ((0, 0, 1), 8, {"answers": "all", "pool": 512}),
    "KL everywhere, 1, 24 rows": ((0, 0, 1), 24, {"answers": "all", "pool": 1024}),
    "KL everywhere, .6, 64 rows": ((0, 0, 0.6), 64, {"answers": "all", "pool": 2048}),
}


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", choices=("embedded", "stories260k"))
    parser.add_argument("--model", type=Path, help="directory of stories260k")
    parser.add_argument("--text", type=Path, help="tinyshakespeare.txt")
    parser.add_argument("--output", type=Path, default=Path("outputs/beyond"))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    options = parser.parse_args()
    if options.study == "stories260k" and not (options.model and options.text):
        parser.error("stories260k needs --model and --text")
    os.environ["OMP_NUM_THREADS"] = "1"
    names = EMBEDDED if options.study == "embedded" else tuple(STORIES)
    train = (
        _embedded
        if options.study == "embedded"
        else partial(_stories, model=options.model, text=options.text)
    )
    runs = [(name, seed) for seed in options.seeds for name in names]
    with ProcessPoolExecutor(options.jobs) as pool:
        one = partial(_run, train=train, folder=options.output / options.study)
        found = dict(zip(runs, pool.map(one, runs), strict=True))
    columns = next(iter(found.values()))
    print("| guard | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name in names:
        cells = [" ".join(f"{found[name, s][key]:.3f}" for s in options.seeds) for key in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")


def _run(run: tuple[str, int], train: Callable[[str, int], dict], folder: Path) -> dict[str, float]:
    """One training; what came of it is kept in a file, and not repeated."""
    name, seed = run
    path = folder / f"{name}, {seed}.json"
    if not path.is_file():
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        found = train(name, seed)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(found))
        print(f"{name}, {seed}: {found}", flush=True)
    return json.loads(path.read_text())


def _fit(model: Any, data: Any, guard: Any, steps: int, lr: float, folder: Path) -> float:
    """Train; the task's validation loss in nats."""
    from lightning.pytorch import Trainer

    from circuitkeep.tasks import CausalLM

    torch.set_num_threads(1)
    plain: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    task = CausalLM(model, lr=lr)
    trainer = Trainer(
        max_steps=steps,
        gradient_clip_val=1.0,
        callbacks=[guard],
        default_root_dir=folder,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        **plain,
    )
    trainer.fit(task, data)
    return Trainer(**plain).validate(task, data, verbose=False)[0]["val/loss_nats"]


def _embedded(name: str, seed: int) -> dict[str, float]:
    from lightning.pytorch import seed_everything

    from circuitkeep.callbacks import CircuitPreservation
    from circuitkeep.capture import attach
    from circuitkeep.capture.models import load_model
    from circuitkeep.cli.demo import ROLES
    from circuitkeep.evals import measure_circuit
    from circuitkeep.penalties import (
        BehaviourKL,
        HeadOutputDrift,
        HeadWeightDrift,
        PatternDivergence,
        Sum,
    )
    from circuitkeep.probing import probe_rows
    from circuitkeep.scan import ScanReport, scan
    from circuitkeep.tasks import KeyValueMap
    from circuitkeep.tasks.embedded import train_embedded

    seed_everything(seed, verbose=False)
    base = train_embedded(Path.home() / ".cache" / "circuitkeep", 0)
    model, before = load_model(base), load_model(base)
    spec = {"_target_": "circuitkeep.probes.RepeatedTokens", "exclude": [1]}
    heads = scan(attach(model), None, RepeatedTokens(exclude=(1,)), ROLES)
    circuit = ScanReport(str(base), "RepeatedTokens", heads, least=0.4).to_circuit(
        "induction", spec, "accuracy", "study_beyond"
    )
    order = torch.randperm(62, generator=torch.Generator().manual_seed(1234 + seed)) + 2
    seen, unseen = order[:40], order[40:]
    probe: Probe = RepeatedTokens(exclude=(1, *unseen.tolist()))
    terms: dict[str, Any] = {"pattern": PatternDivergence(), "behaviour": BehaviourKL()}
    weights = {}
    if name in VIRTUAL:
        excluded = (1, *unseen.tolist())
        probe = _Virtual(exclude=excluded, more=_virtual(model, VIRTUAL[name], seen))
    elif name.startswith("own samples"):
        probe = OwnSamples(32, answers="all" if "everywhere" in name else "repeats")
    elif name == "all tokens":
        probe = RepeatedTokens(exclude=(1,))
    elif "outputs" in name:
        terms |= {"pattern": PatternDivergence(queries="all"), "output": HeadOutputDrift()}
    elif "weights" in name:
        terms["weights"], weights = HeadWeightDrift(), {"weights": 10.0}
    guard = CircuitPreservation(
        circuit.with_all_heads(2, 4) if "all heads" in name else circuit,
        Sum(terms, weights),
        probe,
        weight=float(name != "no guard"),
        rows_per_step=8 if "8 rows" in name else 1,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        data = KeyValueMap(train_rows=32 * 300, seed=seed)
        loss = _fit(model, data, guard, 300, 3e-3, Path(folder))
    found = {"task loss, nats": loss}
    for axis, excluded in (("seen", unseen), ("unseen", seen)):
        # Shorter segments, for which 22 tokens are enough.
        rows = RepeatedTokens(exclude=(1, *excluded.tolist()), segment=(4, 9))
        batch = probe_rows(circuit, attach(model), None, "held_out", 256, 10_000, rows)
        now = measure_circuit(attach(model.eval()), circuit, batch)
        then = measure_circuit(attach(before), circuit, batch)
        found[f"accuracy, {axis} tokens"] = now.behaviour.mean().item()
        found[f"causal, {axis} tokens"] = (now.effect_nats.mean() / then.effect_nats.mean()).item()
    return found


@dataclass(frozen=True)
class _Virtual(RepeatedTokens):
    """Draws from more tokens than the model has: `_virtual` says what they are embedded as."""

    more: int = 0

    def batch(self, context: Any, split: Any, rows: int, seed: int) -> Any:
        wider = replace(context, vocab_size=context.vocab_size + self.more)
        return super().batch(wider, split, rows, seed)


def _virtual(model: Any, kind: str, seen: Any) -> int:
    """Embed tokens that the model does not have; how many."""
    count, generator = 2048, torch.Generator().manual_seed(77)
    table = model.get_input_embeddings()
    plain, base = table.forward, table.weight.detach().clone()
    pool = torch.arange(2, 64) if kind == "mixed of all" else seen
    first, second = pool[torch.randint(len(pool), (2, count), generator=generator)]
    share = torch.rand(count, 1, generator=generator)
    noise = torch.randn(count, base.shape[1], generator=generator)
    length = (base[seen] - base[seen].mean(0)).norm(dim=1).mean()
    noise = length * noise / noise.norm(dim=1, keepdim=True)

    def forward(tokens: Any) -> Any:
        if tokens.max() < len(base):
            return plain(tokens)
        more = table.weight[first] + noise
        if kind != "noise":
            more = share * table.weight[first] + (1 - share) * table.weight[second]
        return embedding(tokens, torch.cat([table.weight, more]))

    table.forward = forward
    return count


def _stories(name: str, seed: int, model: Path, text: Path) -> dict[str, float]:
    from lightning.pytorch import seed_everything

    from circuitkeep.callbacks import CircuitPreservation
    from circuitkeep.capture import attach
    from circuitkeep.capture.models import load_model, load_tokenizer
    from circuitkeep.cli.settings import find_circuit
    from circuitkeep.evals import measure_circuit
    from circuitkeep.penalties import BehaviourKL, HeadOutputDrift, PatternDivergence, Sum
    from circuitkeep.probing import probe_rows
    from circuitkeep.tasks.text import TextData

    seed_everything(seed, verbose=False)
    learner, before, tokenizer = load_model(model), load_model(model), load_tokenizer(model)
    circuit = find_circuit("stories260k-name-copying")
    (pattern, output, behaviour), rows, settings = STORIES[name]
    samples = {"aliases": {"name-mover": "copy"}, "answers": settings.get("answers", "repeats")}
    share = settings.get("replaced", 0.0)
    probe: Probe = _Replacing(**samples, share=share) if share else OwnSamples(**samples)
    terms = {
        "pattern": (PatternDivergence(queries="all"), pattern),
        "output": (HeadOutputDrift(), output),
        "behaviour": (BehaviourKL(), behaviour),
    }
    kept = {key: pair for key, pair in terms.items() if pair[1]} or terms
    guard = CircuitPreservation(
        circuit,
        Sum(
            {k: term for k, (term, _) in kept.items()}, {k: w or 1.0 for k, (_, w) in kept.items()}
        ),
        probe,
        weight=float(any(STORIES[name][0])),
        rows_per_step=rows,
        pool_rows=settings.get("pool", 256),
        seed=seed,
        tokenizer=tokenizer,
    )
    with tempfile.TemporaryDirectory() as folder:
        data = TextData(str(text), 0.1, tokenizer, seed=seed)
        found = {"Shakespeare, nats": _fit(learner, data, guard, 150, 1e-3, Path(folder))}
    for axis in ("both", "templates", "fillers"):
        asked = replace(circuit, probe={**circuit.probe, "held_out_axes": axis})
        batch = probe_rows(asked, attach(before), tokenizer, "held_out", 256, 10_000)
        now, then = (measure_circuit(attach(m.eval()), asked, batch) for m in (learner, before))
        label = {"both": "templates and names", "fillers": "names"}.get(axis, axis)
        found[f"behaviour, {label}"] = (now.behaviour.mean() / then.behaviour.mean()).item()
        if axis == "both":
            found["causal"] = (now.effect_nats.mean() / then.effect_nats.mean()).item()
    return found


@dataclass(frozen=True)
class _Replacing(OwnSamples):
    """Own samples in which some of the tokens that repeat become others, alike all over a row."""

    share: float = 0.0

    def batch(self, context: Any, split: Any, rows: int, seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        special = {*context.special_token_ids, context.bos_token_id}

        def sample(number: int, length: int, seed: int) -> Any:
            tokens = context.sample(number, length, seed)
            found = tokens.clone()
            for old, new in zip(tokens, found, strict=True):
                kinds, counts = old.unique(return_counts=True)
                for kind in kinds[counts > 1].tolist():
                    if kind not in special and torch.rand((), generator=generator) < self.share:
                        other = torch.randint(3, context.vocab_size, (), generator=generator)
                        new[old == kind] = other
            return found

        return super().batch(replace(context, sample=sample), split, rows, seed)


if __name__ == "__main__":
    main()
