"""Which heads do a role's job now, if not those that the circuit names."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from circuitkeep.circuits import Head, Role

SHARE = 0.5
"""Of the score in the base: what still counts as doing the job."""


class Migration(NamedTuple):
    """What has become of a role.

    Attributes:
        lost: Named heads that no longer do its job.
        risen: Heads that are not named, and do it now as they did not in the base.
    """

    lost: tuple[Head, ...]
    risen: tuple[Head, ...]

    def __bool__(self) -> bool:
        return bool(self.lost or self.risen)

    def __str__(self) -> str:
        parts = [
            f"{', '.join(map(str, heads))} {verb}"
            for heads, verb in ((self.lost, "lost it"), (self.risen, "took it up"))
            if heads
        ]
        return " and ".join(parts) or "no head lost it, none took it up"


def migration(
    role: Role,
    now: Float[Tensor, "layer head"],
    base: Float[Tensor, "layer head"],
    share: float = SHARE,
) -> Migration:
    """Compare the scores of every head of the model with those in the base.

    A named head has lost the job if it scores less than `share` of its own score in the base.
    Another has taken it up if it scores at least `share` of the role's mean in the base, and at
    least twice what it did: a head that always attended there is none that has risen.

    Args:
        role: Names the heads.
        now: Mean attention to the role's targets, a probability.
        base: The same in the base model, on the same rows.
        share: What still counts as doing it.
    """
    named = set(role.heads)
    after, before = now.tolist(), base.tolist()
    least = share * sum(before[head.layer][head.index] for head in named) / len(named)
    lost, risen = [], []
    for layer, row in enumerate(after):
        for index, score in enumerate(row):
            head, was = Head(layer, index), before[layer][index]
            if head in named:
                if score < share * was:
                    lost.append(head)
            elif score >= max(least, 2 * was):
                risen.append(head)
    return Migration(tuple(lost), tuple(risen))
