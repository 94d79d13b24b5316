"""Following a circuit that has moved: which heads do its jobs now, and holding those."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from circuitkeep.capture import Backend, probe_mode
from circuitkeep.circuits import Circuit, Head
from circuitkeep.evals.migration import Migration, migration
from circuitkeep.functional import head_score
from circuitkeep.guard.training import Training
from circuitkeep.penalties import Activations, Labels
from circuitkeep.penalties.base import Need
from circuitkeep.reference import Reference, fingerprint_circuit, observe

LOOK_ROWS, CHUNK = 64, 32
OF_HEADS: frozenset[Need] = frozenset({"pattern", "z", "result"})

Scores = Mapping[str, Float[Tensor, "layer head"]]
"""Role -> score of every head of the model."""


@dataclass(frozen=True)
class Moved:
    """A circuit that other heads do the work of now.

    Attributes:
        circuit: With the heads that do.
        roles: What became of each role that has moved.
    """

    circuit: Circuit
    roles: Mapping[str, Migration]

    def __str__(self) -> str:
        return "; ".join(f"{role}: {what}" for role, what in self.roles.items())


class Following:
    """Looks now and then for the heads that do a circuit's jobs, and holds those.

    Args:
        every_n: Optimizer steps between looks.
        circuit: As it is named.
        needs: Of the penalty.

    Raises:
        ValueError: If `every_n` is below 1, or the circuit cannot be followed; see `check_follow`.
    """

    def __init__(self, every_n: int, circuit: Circuit, needs: frozenset[Need]) -> None:
        if every_n < 1:
            raise ValueError(f"follow_every_n_steps must be at least 1, or None; got {every_n}")
        check_follow(circuit, needs)
        self.every_n, self.needs = every_n, needs
        self._base: dict[str, Tensor] = {}
        self._looked = 0

    def state(self, circuit: Circuit) -> dict[str, Any]:
        """For a resumed run, in plain numbers and texts; `circuit` is as it is held now."""
        roles = {role.name: [str(head) for head in role.heads] for role in circuit.roles}
        base = {role: scores.tolist() for role, scores in self._base.items()}
        return {"roles": roles, "base": base, "looked": self._looked}

    def resume(self, state: Mapping[str, Any] | None, circuit: Circuit) -> Circuit:
        """Go on as `state` says, or begin anew; the circuit on the heads that were held."""
        if state is None:
            self._base, self._looked = {}, 0
            return circuit
        self._base = {role: torch.tensor(scores) for role, scores in state["base"].items()}
        self._looked = state["looked"]
        heads = {
            role: [Head.parse(name) for name in names] for role, names in state["roles"].items()
        }
        return circuit.with_heads(heads, circuit.name)

    def look(
        self,
        step: int,
        backend: Backend,
        circuit: Circuit,
        reference: Reference,
        training: Training,
    ) -> tuple[Moved, Reference] | None:
        """Where the circuit has moved to and the reference for it there, if it has; when it is due.

        The first look is at the base model. Every process calls this, and what the first one sees
        decides for all: rounding must not part them.
        """
        if not self._base:
            self._base = training.from_first(role_scores(backend, circuit, reference))
            self._looked = step
        if step - self._looked < self.every_n:
            return None
        self._looked = step
        now = training.from_first(role_scores(backend, circuit, reference))
        found = moved(circuit, now, self._base)
        if found is None:
            return None
        return found, anchored(reference, circuit, found.circuit, backend, self.needs)


def check_follow(circuit: Circuit, needs: frozenset[Need]) -> None:
    """Refuse what cannot be followed.

    Raises:
        ValueError: If the penalty holds more of the heads than patterns and outputs, or a role has
            no head of its own, by which its targets are known.
    """
    if other := needs - OF_HEADS - {"log_probs"}:
        raise ValueError(
            "following a circuit anchors the patterns and outputs of its heads anew, and this "
            f"penalty holds their {', '.join(sorted(other))} too; leave that term out, or do not "
            "follow"
        )
    for role in circuit.roles:
        if _only(circuit, role.name) is None:
            raise ValueError(
                f"circuit {circuit.name!r} cannot be followed: every head of the role "
                f"{role.name!r} has another role too, so its own targets are not told apart"
            )


@torch.no_grad()
def role_scores(backend: Backend, circuit: Circuit, reference: Reference) -> dict[str, Tensor]:
    """Every head's score for every role, on the first rows of the train-probe pool.

    Train rows, because what is found decides what the penalty holds.

    Returns:
        Role -> ``[layer, head]`` mean attention to the role's targets, on the CPU.
    """
    index = torch.arange(min(LOOK_ROWS, len(reference)))
    rows, _ = reference.select(index, backend.device)
    every = circuit.with_all_heads(backend.n_layers, backend.n_heads)
    with probe_mode(backend.model):
        found, _ = observe(backend, rows, every, {"pattern"})
    pattern = found.pattern
    assert pattern is not None
    targets = role_targets(circuit, rows.labels)
    shape = (backend.n_layers, backend.n_heads)
    return {
        role: head_score(pattern, target).reshape(shape).cpu() for role, target in targets.items()
    }


def moved(circuit: Circuit, now: Scores, base: Scores) -> Moved | None:
    """The circuit on the heads that do its jobs now, if others have taken one up.

    Where heads have lost a job that no other has taken up, the named ones stay: there is nothing
    to follow, and the penalty goes on pulling them back.
    """
    heads: dict[str, tuple[Head, ...]] = {}
    roles: dict[str, Migration] = {}
    for role in circuit.roles:
        found = migration(role, now[role.name], base[role.name])
        heads[role.name] = role.heads
        if found.risen:
            roles[role.name] = found
            heads[role.name] = tuple(sorted({*role.heads, *found.risen} - set(found.lost)))
    return Moved(circuit.with_heads(heads, circuit.name), roles) if roles else None


@torch.no_grad()
def anchored(
    reference: Reference, circuit: Circuit, now: Circuit, backend: Backend, needs: frozenset[Need]
) -> Reference:
    """The reference for a circuit on other heads.

    Heads that stay are held to what they did in the base, heads that are new to what they do now,
    and the predictions to those of the base.

    Args:
        reference: Of `circuit`.
        circuit: As it was.
        now: As it is.
        backend: Of the model now.
        needs: Of the penalty.
    """
    labels = reference.rows.labels
    targets = role_targets(circuit, labels)
    target = torch.stack(
        [
            torch.stack([targets[role.name] for role in now.roles if head in role.heads]).any(0)
            for head in now.heads
        ],
        dim=1,
    )
    rows = replace(
        reference.rows,
        labels=Labels(labels.query_mask, target.any(-1), target, labels.answer_row),
    )
    fingerprint = replace(reference.fingerprint, circuit=fingerprint_circuit(now))
    whole = Reference(rows, reference.activations, fingerprint)
    parts = []
    with probe_mode(backend.model):
        for index in torch.arange(len(whole)).split(CHUNK):
            part, _ = whole.select(index, backend.device)
            parts.append(observe(backend, part, now, needs & OF_HEADS)[0])
    stays = {head: circuit.heads.index(head) for head in now.heads if head in circuit.heads}
    kept: dict[str, Tensor | None] = {}
    for name in ("pattern", "output"):
        before: Tensor | None = getattr(reference.activations, name)
        if before is None:
            continue
        after = torch.cat([getattr(part, name) for part in parts]).to(before)
        for place, head in enumerate(now.heads):
            if head in stays:
                after[:, place] = before[:, stays[head]]
        kept[name] = after
    activations: Activations = replace(reference.activations, **kept)  # type: ignore[arg-type]
    return Reference(rows, activations, fingerprint)


def role_targets(circuit: Circuit, labels: Labels) -> dict[str, Bool[Tensor, "batch query key"]]:
    """Where the heads of each role should attend, by a head that has no other role."""
    found = {}
    for role in circuit.roles:
        head = _only(circuit, role.name)
        assert head is not None
        found[role.name] = labels.target[:, circuit.heads.index(head)]
    return found


def _only(circuit: Circuit, role: str) -> Head | None:
    """A head of `role` and of no other."""
    others = {head for other in circuit.roles if other.name != role for head in other.heads}
    own = next(each for each in circuit.roles if each.name == role)
    return next((head for head in own.heads if head not in others), None)
