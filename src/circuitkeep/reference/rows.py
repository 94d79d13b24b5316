"""Probe rows as a penalty needs them, and what the guarded heads do on them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from circuitkeep.capture import Backend, Sites
from circuitkeep.capture.weights import head_maps
from circuitkeep.circuits import Circuit
from circuitkeep.penalties import Activations, Labels
from circuitkeep.penalties.base import Need
from circuitkeep.probes import ProbeBatch
from circuitkeep.reference.points import points_of, stretches_of


@dataclass(frozen=True)
class GuardedRows:
    """Probe rows with everything that a penalty on them needs, beside the forward pass itself.

    Attributes:
        tokens: Right-padded.
        queries: Per row, the positions of the captured queries (padded with 0).
        labels: Where the heads should attend.
        positions: Positions whose logits are computed, the same for every row; on the CPU, where
            those of several circuits are joined without waiting for the device.
        answer_slot: For each answer, where its position stands in `positions`.
        answer: Its token.
        means: What takes the place of the guarded heads' outputs when they are ablated.
        stretches: Which point of each of the circuit's manifolds a position belongs to; `NO_VALUE`
            for none.
    """

    tokens: Int[Tensor, "batch pos"]
    queries: Int[Tensor, "batch query"]
    labels: Labels
    positions: Int[Tensor, " kept"]
    answer_slot: Int[Tensor, " answer"]
    answer: Int[Tensor, " answer"] | None = None
    means: Float[Tensor, "head d_head"] | None = None
    stretches: Int[Tensor, "batch manifold pos"] | None = None

    def to(self, device: torch.device | str) -> GuardedRows:
        """The same rows on another device, but for `positions`."""

        def moved(part: GuardedRows | Labels) -> dict[str, Tensor]:
            values = {item.name: getattr(part, item.name) for item in fields(part)}
            return {
                name: value.to(device, non_blocking=True)
                for name, value in values.items()
                if isinstance(value, Tensor) and name != "positions"
            }

        return replace(self, **moved(self), labels=replace(self.labels, **moved(self.labels)))


def guard_rows(
    batch: ProbeBatch,
    circuit: Circuit,
    all_queries: bool,
    answers: bool = False,
    manifolds: bool = False,
) -> GuardedRows:
    """Choose the queries of each row and label them for each head of the circuit.

    Args:
        batch: Probe rows, on the CPU.
        circuit: Its roles are labelled by the batch.
        all_queries: Take every real position, not only those with a target.
        answers: Take the positions of the answers too.
        manifolds: Say which positions make the points of the circuit's manifolds.

    Raises:
        ValueError: See `circuitkeep.reference.points.stretches_of`.
    """
    roles = [
        torch.stack([batch.targets[r.name] for r in circuit.roles if head in r.heads]).any(0)
        for head in circuit.heads
    ]
    target = torch.stack(roles, dim=1)
    wanted = batch.mask if all_queries else target.any(3).any(1)
    if answers:
        wanted = wanted.index_put(
            (batch.answer_row, batch.answer_position), torch.ones((), dtype=torch.bool)
        )
    count = wanted.sum(1)
    # A stable descending sort puts the wanted positions first, in order.
    order = wanted.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    width = max(int(count.max()), 1)
    query_mask = torch.arange(width)[None, :] < count[:, None]
    queries = order[:, :width].where(query_mask, 0)
    rows = torch.arange(len(batch))[:, None]
    chosen = target.transpose(1, 2)[rows, queries].transpose(1, 2) & query_mask[:, None, :, None]
    positions, answer_slot = torch.unique(batch.answer_position, return_inverse=True)
    labels = Labels(query_mask, chosen.any(-1), chosen, batch.answer_row)
    found = GuardedRows(batch.tokens, queries, labels, positions, answer_slot, batch.answer)
    if not manifolds:
        return found
    stretches, present = stretches_of(batch, circuit)
    return replace(found, stretches=stretches, labels=replace(labels, point_mask=present))


@dataclass(frozen=True)
class Question:
    """What a circuit's heads did is wanted on some rows.

    Attributes:
        rows: On the model's device.
        circuit: Names the heads.
        needs: What is wanted of them.
    """

    rows: GuardedRows
    circuit: Circuit
    needs: frozenset[Need]

    @property
    def sites(self) -> Sites:
        """Where the answer is found."""
        heads, manifolds = self.circuit.heads, "manifolds" in self.needs
        return Sites(
            pattern=heads if "pattern" in self.needs else (),
            z=heads if "z" in self.needs else (),
            result=heads if {"result", "attribution"} & self.needs else (),
            resid=tuple(m.layer for m in self.circuit.manifolds) if manifolds else (),
            logits=bool({"log_probs", "effect"} & self.needs),
        )


def observe(
    backend: Backend, rows: GuardedRows, circuit: Circuit, needs: Collection[Need]
) -> tuple[Activations, Tensor | None]:
    """Run the model on probe rows and keep what `needs` names of the circuit's heads.

    Dropout must be off already (`probe_mode`). Gradients flow if they are enabled.

    Returns:
        The activations, and the model's logits (None if the pass was cut short).
    """
    (now,), logits = observe_all(backend, [Question(rows, circuit, frozenset(needs))])
    return now, logits


def observe_all(
    backend: Backend, questions: Sequence[Question]
) -> tuple[list[Activations], Tensor | None]:
    """Run the model once, on the rows of all questions; see `observe`.

    Rows are padded on the right to the longest, where a causal model does not look. Positions
    whose logits anybody wants are computed for all rows. Questions about weights alone take no
    part in the pass; without others there is none.
    """
    asking = [question for question in questions if question.needs != {"weights"}]
    found, logits = _run(backend, asking) if asking else ([], None)
    passed = iter(found)
    answers = []
    for question in questions:
        now = Activations() if question.needs == {"weights"} else next(passed)
        if "weights" in question.needs:
            heads = question.circuit.heads
            named = tuple((head.layer, head.index) for head in heads)
            now = replace(now, heads=named, **vars(head_maps(backend, heads)))
        if "answers" in question.needs:
            now = replace(now, answers=_of_answers(now.log_probs, question.rows))
        if "effect" in question.needs:
            now = replace(now, effect=_effect(backend, question, now.log_probs))
        answers.append(now)
    return answers, logits


def _run(
    backend: Backend, questions: Sequence[Question]
) -> tuple[list[Activations], Tensor | None]:
    tokens = [question.rows.tokens for question in questions]
    length = max(part.shape[1] for part in tokens)
    joined = torch.cat([pad(part, (0, length - part.shape[1])) for part in tokens])
    starts = [0]
    for part in tokens:
        starts.append(starts[-1] + len(part))
    wanted = [q.rows.positions for q in questions if q.sites.logits]
    positions = wanted[0] if len(wanted) == 1 else torch.cat(wanted).unique() if wanted else None
    with ExitStack() as stack:
        captured = []
        for question, start in zip(questions, starts, strict=False):
            queries = question.rows.queries
            below = len(joined) - start - len(queries)  # the others' rows ask for query 0
            queries = pad(queries, (0, 0, start, below))
            captured.append(stack.enter_context(backend.capture(question.sites, queries)))
        kept = None if positions is None else positions.to(backend.device, non_blocking=True)
        logits = backend.forward(joined, kept)
    answers = []
    for question, found, start in zip(questions, captured, starts, strict=False):
        sites, rows = question.sites, question.rows
        own = slice(start, start + len(rows.tokens))
        log_probs = None
        if sites.logits:
            assert logits is not None
            assert positions is not None
            places = torch.searchsorted(positions, rows.positions).to(backend.device)
            log_probs = _log_probs(logits[own], rows, places)
        pattern = found.pattern[own, ..., : rows.tokens.shape[1]] if sites.pattern else None
        site = {"z", "result"} & question.needs
        output = getattr(found, site.pop())[own] if site else None
        now = Activations(pattern, output, log_probs)
        if "attribution" in question.needs:
            now = replace(now, written=_at_answers(found.result[own], rows))
        if "manifolds" in question.needs:
            assert rows.stretches is not None
            stream = found.resid[own, :, : rows.tokens.shape[1]]
            now = replace(now, points=points_of(stream, rows.stretches))
        answers.append(now)
    return answers, logits


def _log_probs(
    logits: Float[Tensor, "batch kept vocab"], rows: GuardedRows, places: Int[Tensor, " position"]
) -> Float[Tensor, "answer vocab"]:
    """At the answers; `places` says where the rows' positions stand among those that were kept."""
    values = logits[rows.labels.answer_row, places[rows.answer_slot]]
    return values.to(torch.promote_types(values.dtype, torch.float32)).log_softmax(-1)


def _at_answers(
    result: Float[Tensor, "batch head query d_model"], rows: GuardedRows
) -> Float[Tensor, "answer head d_model"]:
    row = rows.labels.answer_row
    position = rows.positions.to(row.device, non_blocking=True)[rows.answer_slot]
    slot = (rows.queries[row] == position[:, None]).to(torch.uint8).argmax(1)
    return result[row, :, slot]


def _effect(
    backend: Backend, question: Question, whole: Float[Tensor, "answer vocab"] | None
) -> Float[Tensor, " answer"]:
    """What ablating the guarded heads costs each answer, by a second pass over the rows."""
    rows = question.rows
    assert whole is not None
    assert rows.means is not None
    with backend.ablate(dict(zip(question.circuit.heads, rows.means, strict=True))):
        logits = backend.forward(rows.tokens, rows.positions.to(backend.device))
    assert logits is not None
    places = torch.arange(len(rows.positions), device=logits.device)
    return _of_answers(whole - _log_probs(logits, rows, places), rows)


def _of_answers(
    values: Float[Tensor, "answer vocab"] | None, rows: GuardedRows
) -> Float[Tensor, " answer"]:
    assert values is not None
    assert rows.answer is not None
    return values.gather(1, rows.answer[:, None])[:, 0]
