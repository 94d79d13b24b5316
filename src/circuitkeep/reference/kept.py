"""What the base model did on the train probes: captured once, saved, and checked when loaded."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from circuitkeep.capture import Backend, probe_mode
from circuitkeep.capture.weights import head_maps, head_turns
from circuitkeep.circuits import Circuit, dump_circuit
from circuitkeep.files import replacing
from circuitkeep.functional import coarse_log_probs
from circuitkeep.functional.procrustes import spread_and_frames
from circuitkeep.penalties import Activations, Labels
from circuitkeep.penalties.attribution import attributed
from circuitkeep.penalties.base import Need
from circuitkeep.probes import Probe, ProbeBatch
from circuitkeep.reference.answers import answer_directions, mean_outputs
from circuitkeep.reference.rows import GuardedRows, guard_rows, observe

_CHUNK = 32
_FORMAT = "2"


@dataclass(frozen=True)
class Fingerprint:
    """What a reference was made of; two references may stand in for each other iff equal.

    Attributes:
        model: See `circuitkeep.capture.fingerprints.fingerprint_model`.
        tokenizer: See `circuitkeep.capture.fingerprints.fingerprint_tokenizer`.
        probe: See `fingerprint_probe`.
        circuit: See `fingerprint_circuit`.
        needs: What was captured, and at which queries.
    """

    model: str
    tokenizer: str
    probe: str
    circuit: str
    needs: str

    @property
    def short(self) -> str:
        """Twelve hexadecimal digits over all of it, for file names."""
        content = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


TOP_TOKENS = 256
"""Of a distribution over more than twice as many tokens, the reference keeps the likeliest 256 and
the sum of the others: of GPT-2's 50257 a hundredth of the memory."""


class Reference:
    """The base model's activations on a pool of train-probe rows.

    Labels and tokens stay on the CPU, where rows are chosen without waiting for the device;
    activations live on the model's device.
    """

    def __init__(
        self, rows: GuardedRows, activations: Activations, fingerprint: Fingerprint
    ) -> None:
        self.rows = rows
        self.activations = activations
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        return self.rows.tokens.shape[0]

    def select(
        self, index: Int[Tensor, " row"], device: torch.device
    ) -> tuple[GuardedRows, Activations]:
        """Some rows of the pool and what the base model did on them, on `device`."""
        rows, labels = self.rows, self.rows.labels
        order = (labels.answer_row[None, :] == index[:, None]).nonzero()
        picked = GuardedRows(
            rows.tokens[index],
            rows.queries[index],
            Labels(
                labels.query_mask[index],
                labels.target_mask[index],
                labels.target[index],
                order[:, 0],
                None if labels.point_mask is None else labels.point_mask[index],
            ),
            rows.positions,
            rows.answer_slot[order[:, 1]],
            None if rows.answer is None else rows.answer[order[:, 1]],
            rows.means,
            None if rows.stretches is None else rows.stretches[index],
        ).to(device)
        there = index.to(device, non_blocking=True)
        answers = order[:, 1].to(device, non_blocking=True)
        now = self.activations

        def rows_of(value: Tensor | None, where: Tensor) -> Tensor | None:
            return None if value is None else value[where]

        return picked, replace(
            now,
            pattern=rows_of(now.pattern, there),
            output=rows_of(now.output, there),
            log_probs=rows_of(now.log_probs, answers),
            tokens=rows_of(now.tokens, answers),
            direction=rows_of(now.direction, answers),
            attribution=rows_of(now.attribution, answers),
            effect=rows_of(now.effect, answers),
            points=rows_of(now.points, there),
        )

    def to(self, device: torch.device) -> Reference:
        """The same reference with its activations on `device`."""
        values = {f.name: getattr(self.activations, f.name) for f in fields(Activations)}
        moved = {name: None if v is None else v.to(device) for name, v in values.items()}
        return Reference(self.rows, Activations(**moved), self.fingerprint)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write rows and activations (safetensors) and fingerprints (JSON header), atomically."""
        tensors = {}
        for prefix, part in self._parts().items():
            for item in fields(part):
                if isinstance(value := getattr(part, item.name), Tensor):
                    tensors[f"{prefix}.{item.name}"] = value.contiguous().cpu()
        versions = {name: version(name) for name in ("circuitkeep", "torch", "transformers")}
        header = {"format": _FORMAT, "versions": versions, **asdict(self.fingerprint)}
        with replacing(path) as temporary:
            try:
                save_file(tensors, temporary, metadata={"circuitkeep": json.dumps(header)})
            except SafetensorError as error:  # which is no OSError, even where the disk is full
                raise OSError(f"the reference was not written to {path}: {error}") from error

    def _parts(self) -> dict[str, GuardedRows | Labels | Activations]:
        return {"rows": self.rows, "labels": self.rows.labels, "activations": self.activations}


def capture_reference(
    backend: Backend,
    circuit: Circuit,
    batch: ProbeBatch,
    needs: Collection[Need],
    all_queries: bool,
    fingerprint: Fingerprint,
) -> Reference:
    """Run the base model once over the whole pool of train-probe rows.

    Gradient, dropout and random state are left alone; see `circuitkeep.capture.probe_mode`.
    """
    pool = guard_rows(batch, circuit, all_queries, "attribution" in needs, "manifolds" in needs)
    if "effect" in needs:
        pool = replace(pool, means=mean_outputs(backend, circuit.heads, batch))
    directions = answer_directions(backend, batch) if "attribution" in needs else None
    whole = Reference(pool, Activations(direction=directions), fingerprint)
    parts: list[Activations] = []
    of_rows = frozenset(needs) - {"weights", "answers"}
    with torch.no_grad(), probe_mode(backend.model):
        for index in torch.arange(len(whole)).split(_CHUNK) if of_rows else ():
            rows, before = whole.select(index, backend.device)
            found = observe(backend, rows, circuit, of_rows)[0]
            parts.append(_kept(found, before.direction, "log_probs" in needs))

    def join(name: str) -> Tensor | None:
        present = [value for part in parts if (value := getattr(part, name)) is not None]
        return torch.cat(present) if present else None

    activations = Activations(**{item.name: join(item.name) for item in fields(Activations)})  # type: ignore[arg-type]
    if "manifolds" in needs:
        assert activations.points is not None
        assert pool.labels.point_mask is not None
        present = pool.labels.point_mask.to(backend.device)
        dimensions = torch.tensor([one.dimensions for one in circuit.manifolds]).to(present.device)
        spread, frames = spread_and_frames(activations.points, present, dimensions)
        activations = replace(activations, spread=spread, frames=frames)
    if "weights" in needs:
        maps = vars(head_maps(backend, circuit.heads))
        kept = {name: value.detach().clone() for name, value in maps.items()}
        turns = head_turns(backend, circuit.heads)
        activations = replace(activations, **kept, turns=turns)
    return Reference(pool, activations, fingerprint)


def _kept(found: Activations, direction: Tensor | None, log_probs: bool) -> Activations:
    """What a reference holds of it: of heads' writes what they say to the answer, and the likeliest
    tokens alone, where that takes less memory than all of them."""
    if direction is not None:
        assert found.written is not None
        said = attributed(found.written, direction)
        found = replace(found, written=None, direction=direction, attribution=said)
    if not log_probs or found.log_probs is None:
        return replace(found, log_probs=None)
    if found.log_probs.shape[1] <= 2 * (TOP_TOKENS + 1):
        return found
    tokens = found.log_probs.topk(TOP_TOKENS).indices
    coarse = coarse_log_probs(found.log_probs, tokens)
    return replace(found, log_probs=coarse, tokens=tokens.to(torch.int32))


def load_reference(
    path: str | os.PathLike[str], fingerprint: Fingerprint, may_differ: Collection[str] = ()
) -> Reference:
    """Read a saved reference, if it is of this model, tokenizer, probe and circuit.

    Args:
        path: Written by `Reference.save`.
        fingerprint: What the reference must have been made of.
        may_differ: Parts of the fingerprint that are not compared: the model's, when a run is
            resumed and its weights are no longer the base model's.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or of something else; the message says what differs.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no reference file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("circuitkeep", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a reference file: {error}") from error
    if header.get("format") != _FORMAT:
        raise ValueError(f"{path} is not a reference file of this version of circuitkeep")
    for part, expected in asdict(fingerprint).items():
        if part not in may_differ and header[part] != expected:
            raise ValueError(
                f"the reference at {path} is of another {part} ({header[part][:12]}, here "
                f"{expected[:12]}); delete it, or name another file by reference=..."
            )
    stored: dict[str, dict[str, Tensor]] = {"rows": {}, "labels": {}, "activations": {}}
    for name, value in tensors.items():
        prefix, _, attribute = name.partition(".")
        stored[prefix][attribute] = value
    rows = GuardedRows(labels=Labels(**stored["labels"]), **stored["rows"])
    found = Fingerprint(**{item.name: header[item.name] for item in fields(Fingerprint)})
    activations = Activations(**stored["activations"])  # type: ignore[arg-type]
    return Reference(rows, activations, found)


def fingerprint_probe(probe: Probe, rows: int, seed: int) -> str:
    """SHA-256 over a probe's settings (probes are dataclasses), the rows asked for and the seed."""
    return hashlib.sha256(f"{probe!r} {rows} {seed}".encode()).hexdigest()


def fingerprint_circuit(circuit: Circuit) -> str:
    """SHA-256 over the circuit file's content, but for what tests ask of it."""
    return hashlib.sha256(dump_circuit(replace(circuit, tests={})).encode()).hexdigest()
