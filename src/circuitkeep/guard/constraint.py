"""A weight that finds itself: users say how much of a circuit to keep, not what that weighs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from circuitkeep.circuits import Circuit
from circuitkeep.functional import mean_over_answers, mean_over_queries, target_attention
from circuitkeep.penalties import Activations, Labels
from circuitkeep.penalties.base import Need, check_choice, compared

_NEEDS: dict[str, Need] = {"behaviour": "log_probs", "identity": "pattern"}


@dataclass(frozen=True)
class Constraint:
    r"""``retention >= ...`` of a circuit, held by a multiplier that is raised and lowered for it.

    In each due step the drift, 1 - retention on that step's train-probe rows, smoothed, is compared
    with the drift that is accepted, and the weight ``w`` follows the ratio of the two:

    .. math:: e = \log \frac{\max(1 - r, a / 4)}{a}, \quad a = 1 - \mathrm{retention}, \quad
              I \leftarrow I + k_I e, \quad w = \exp(I + k_P e)

    with ``I`` and ``log w`` kept within ``least`` and ``most``. This is dual ascent on the
    multiplier's logarithm, with a proportional part against oscillation (Stooke et al.). The
    gradient is that of the penalty, which stands in for the retention (Cotter et al.). As an
    integral that stays within its bounds does not wind up (Weiss & Natarajan): however long it was
    at one, it leaves it as soon as the smoothed retention is across the target.

    The retention is "at least": where the task does not touch the circuit, the weight falls to
    ``least`` and the retention stays above. Where no weight holds it, the weight rises to ``most``.

    All times are in due steps: with ``every_n_steps=4`` the weight takes four times as many steps
    to get anywhere, so give it a good first value there.

    Attributes:
        retention: To be kept, between 0 and 1.
        kind: "behaviour": the share of answers whose likeliest token is that of the base, wants
            `BehaviourKL`; "identity": the attention of each role's heads to their targets against
            the base's, mean over roles, wants a penalty that reads patterns.
        integral: Of the log ratio, added to the log weight in each due step.
        proportional: Of the log ratio, on top of that.
        smoothing: Time constant of the moving averages, in due steps.
        least: Of the weight.
        most: Of the weight.

    Raises:
        ValueError: For a setting out of range.

    Source:
        Stooke et al. 2020, arXiv:2007.03964 (PI control of a multiplier); Ziegler et al. 2019,
        arXiv:1909.08593, section 2.2 (control of its logarithm, for a KL that is asked for);
        Cotter et al. 2019, arXiv:1804.06500 (multiplier by the constraint, gradient by a proxy);
        Weiss & Natarajan 2016, arXiv:1610.04868 (the saturating integrator).
    """

    retention: float
    kind: str = "behaviour"
    integral: float = 0.03
    proportional: float = 0.3
    smoothing: float = 20.0
    least: float = 1e-3
    most: float = 100.0

    def __post_init__(self) -> None:
        if not 0 < self.retention < 1:
            raise ValueError(
                "Constraint: retention is the share of the base's value to be kept, between 0 and "
                f"1 (0.95 accepts a drift of 5%), got {self.retention}"
            )
        check_choice("Constraint: kind", self.kind, tuple(_NEEDS))
        for name, least in (("integral", 0), ("proportional", 0), ("smoothing", 1)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise ValueError(f"Constraint: {name} must be >= {least}, got {value}")
        if not 0 < self.least < self.most < math.inf:
            raise ValueError(
                f"Constraint: 0 < least < most is needed, got least={self.least}, most={self.most}"
            )

    def tightened(self, factor: float) -> Constraint:
        """The same, with a drift accepted that is smaller by `factor`."""
        return replace(self, retention=1 - (1 - self.retention) / factor)

    def check_needs(self, needs: frozenset[Need]) -> None:
        """Refuse a penalty whose pass does not observe what the constraint is on.

        Raises:
            ValueError: With what to add, or to ask for instead.
        """
        if _NEEDS[self.kind] not in needs:
            add, other = (
                ("BehaviourKL", "identity")
                if self.kind == "behaviour"
                else ("PatternDivergence", "behaviour")
            )
            raise ValueError(
                f"Constraint: the {self.kind} cannot be seen in what the penalty observes "
                f"({', '.join(sorted(needs))}); add {add} to it, or constrain kind={other!r}"
            )


def as_constraint(
    constraint: float | Constraint | None, needs: frozenset[Need]
) -> Constraint | None:
    """What a user gave, on a penalty whose pass observes `needs`; see `Constraint.check_needs`."""
    if isinstance(constraint, int | float):
        constraint = Constraint(constraint)
    if constraint is None:
        return None
    if not isinstance(constraint, Constraint):
        raise ValueError(f"constraint must be a number, 0.95, or a Constraint; got {constraint!r}")
    constraint.check_needs(needs)
    return constraint


class Multiplier:
    """The weight that a `Constraint` finds; the same on all ranks if they are shown the same.

    Everything stays on the device, where nothing waits for it.

    Args:
        constraint: What is to be kept.
        initial: The weight to begin with.
        state: Of a run that is resumed; see `state`.
    """

    def __init__(
        self, constraint: Constraint, initial: float, state: Mapping[str, Any] | None = None
    ) -> None:
        self.constraint = constraint
        log_initial = math.log(initial)
        state = state or {"weight": initial, "integral": log_initial, "seen": [[0.0], [0.0]]}
        self.weight = torch.tensor(state["weight"])
        self._integral = torch.tensor(state["integral"])
        self._seen = torch.tensor(state["seen"])
        self._before = self._now

    @property
    def state(self) -> dict[str, Any]:
        """For a resumed run, in plain numbers."""
        weight, integral, seen = self._now
        return {"weight": weight.item(), "integral": integral.item(), "seen": seen.tolist()}

    def weight_at(self, step: int) -> Float[Tensor, ""]:
        """The weight in the step that comes, whichever that is."""
        return self.weight

    def kept(
        self, circuit: Circuit, now: Activations, reference: Activations, labels: Labels
    ) -> Float[Tensor, "2 part"]:
        """What `see` is to be shown; see `kept_of`."""
        return kept_of(self.constraint.kind, circuit, now, reference, labels)

    def see(self, kept: Float[Tensor, "2 part"]) -> dict[str, Float[Tensor, ""]]:
        """Set the weight by what a due step showed; see `kept_of`.

        Args:
            kept: Over the rows of all ranks.

        Returns:
            To log: ``weight`` as it was, and ``retention_held_in``, smoothed: a ratio of averages,
            for an average of ratios would be biased, and mean over parts. It is NaN if it cannot
            be known, and so is the next weight.
        """
        self._before = self._now
        weight = self.weight
        wanted = self.constraint
        kept = kept.to(self.weight.dtype)
        # Both averages begin at 0, which their ratio does not know.
        self._seen = torch.lerp(kept, self._seen.to(kept.device), 1 - 1 / wanted.smoothing)
        retention = (self._seen[0] / self._seen[1]).mean()
        accepted = 1 - wanted.retention
        error = ((1 - retention) / accepted).clamp(min=1 / 4).log()
        bounds = math.log(wanted.least), math.log(wanted.most)
        self._integral = self._integral.to(kept.device) + wanted.integral * error
        self._integral = self._integral.clamp(*bounds)
        self.weight = (self._integral + wanted.proportional * error).clamp(*bounds).exp()
        return {"weight": weight, "retention_held_in": retention}

    def forget(self) -> None:
        """Take the last `see` back: its step was not taken."""
        self.weight, self._integral, self._seen = self._before

    @property
    def _now(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.weight, self._integral, self._seen


@torch.no_grad()
def kept_of(
    kind: str, circuit: Circuit, now: Activations, reference: Activations, labels: Labels
) -> Float[Tensor, "2 part"]:
    """What is retained on some rows: its value now, and at the reference.

    One part for the behaviour, one per role for the identity. Both are means over rows, so that
    shards may be averaged by their number of rows.
    """
    if kind == "behaviour":
        assert now.log_probs is not None
        assert reference.log_probs is not None
        n_rows = labels.query_mask.shape[0]
        # The tokens that a reference keeps begin with the likeliest.
        top = reference.log_probs.argmax(-1) if reference.tokens is None else reference.tokens[:, 0]
        same = (now.log_probs.argmax(-1) == top.to(now.log_probs.device)).float()
        values = [mean_over_answers(x, labels.answer_row, n_rows) for x in (same, same * 0 + 1)]
        return torch.stack(values)[:, None]
    kept, current = (
        mean_over_queries(target_attention(pattern, labels.target), labels.target_mask).mean(0)
        for pattern in compared(now, reference, "pattern")
    )
    places = [[circuit.heads.index(head) for head in role.heads] for role in circuit.roles]
    return torch.stack(
        [
            torch.stack([sum(value[i] for i in place) / len(place) for place in places])  # type: ignore[arg-type]
            for value in (current, kept)
        ]
    )
