"""Keeping the penalty within a share of the training time, by what steps are measured to take.

For the first steps, and again after every `REST_STEPS`, steps without the penalty, with one row
and with the most rows are timed in turn. From that it is chosen how often the penalty is due, and
on how many rows.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from circuitkeep.callbacks.periodic import log_metrics, steps_taken
from circuitkeep.callbacks.processes import place_of
from circuitkeep.circuits import Circuit
from circuitkeep.guard.schedule import EveryN, Pace, Share

MOST_EVERY = 100
"""The most optimizer steps from one penalty to the next."""
BLOCKS = 8
"""Times that each kind of step is run while measuring; the first time only warms up."""
REST_STEPS = 1000
"""Optimizer steps from one measuring to the next, rounded up to whole intervals."""


@dataclass(frozen=True)
class Choice:
    """How often the penalty is due, and on how many rows.

    Attributes:
        rows: Of each rank, per due step.
        every_n: Optimizer steps from one due step to the next.
        overhead: Time that this adds, as a share of the time of training without the penalty.
    """

    rows: int
    every_n: int
    overhead: float


def choose(
    plain_s: float,
    fixed_s: float,
    per_row_s: float,
    budget: float,
    most_rows: int,
    most_every: int = MOST_EVERY,
) -> Choice:
    r"""The densest penalty that a budget allows: first the shortest interval, then the most rows.

    A due step with ``r`` rows takes ``fixed_s + r * per_row_s`` longer, so that every ``n`` steps

    .. math:: \mathrm{overhead}(r, n) = \frac{\mathrm{fixed} + r \cdot \mathrm{row}}
              {n \cdot \mathrm{plain}}

    The interval is the least at which one row is within the budget, the rows are the most that
    then are. Rows come second because the variance of the summed gradient over the rows drawn
    goes with ``n / r``: with no fixed cost every choice on the budget's line has the same, and the
    shortest interval leaves the model the fewest steps to drift in, and multiplies the penalty
    least. Measured on a two-layer model: 2 rows every step keep as much as 8; every 4th step keeps
    a little less, every 10th a good deal less.

    Args:
        plain_s: A step without the penalty, in seconds; more than 0.
        fixed_s: What a due step takes longer, whatever its rows.
        per_row_s: What each row adds to that; not below 0.
        budget: The most overhead.
        most_rows: The most rows of each rank.
        most_every: The longest interval.

    Returns:
        The choice; one row every `most_every` steps if that too is over the budget, as its
        `overhead` then says.
    """
    allowed_s = budget * plain_s  # per step

    def choice(rows: int, every_n: int) -> Choice:
        return Choice(rows, every_n, (fixed_s + rows * per_row_s) / (every_n * plain_s))

    one_s = fixed_s + per_row_s
    if one_s > most_every * allowed_s:
        return choice(1, most_every)
    slack = 1e-9  # a quotient that is a whole number up to rounding is one
    every_n = max(1, math.ceil(one_s / allowed_s - slack)) if one_s > 0 else 1
    rows = most_rows
    if per_row_s > 0:
        left_s = every_n * allowed_s - fixed_s
        rows = max(1, min(most_rows, math.floor(left_s / per_row_s + slack)))
    return choice(rows, every_n)


class WithinBudget(Pace):
    """Measures what steps take and chooses by it.

    While it measures, each step of a block of three is without the penalty, with one row of each
    rank or with all, in random order; the penalty is multiplied by 3/2, so that its expectation is
    that of one due in every step. A step's time is that of its batches, from before to after
    everything Lightning does with one: the loss, backward, optimizer. Loading of data and what
    happens between steps is left out, so that a run that waits for data stays within the budget
    all the more. Costs are differences within a block, and taken a little above their median: what
    is uncertain does not go over the budget. Measuring is paid for out of the budget of the
    `REST_STEPS` after it.

    Guards of several circuits measure in the same steps, and each takes the joint time for its own.
    A run that is stopped while it measures measures anew when it is resumed, and is then not
    bit-identical to one that was not stopped; with a choice made, it goes on with that. A run much
    shorter than `REST_STEPS` spends more than the budget, for it measures but does not save after.

    Args:
        budget: The most time that the penalty may add, as a share of the time without it.
        most_rows: The most rows per due step, over all ranks.
        circuit: Named in logs.
        world: Ranks that share the rows out.
        step: The first.
        state: Of a run that is resumed; see `state`. That of another budget is not used.
    """

    def __init__(
        self,
        budget: float,
        most_rows: int,
        circuit: Circuit,
        world: int,
        step: int,
        state: Mapping[str, Any] | None,
    ) -> None:
        self.budget, self.circuit = budget, circuit
        self.all_rows, self.world = most_rows, world
        self.most_rows = math.ceil(most_rows / world)  # of each rank
        self.kinds = sorted({0, 1, self.most_rows})
        self._settings = {"budget": budget, "most_rows": most_rows, "world": world}
        self._told: tuple[int, int] | None = None
        self._started_s: float | None = None
        self._step, self._asked = -1, False  # of the batch that is timed, and whether `at` was
        self._measure_from(step)
        if state is not None and all(state[key] == self._settings[key] for key in self._settings):
            self._use(Choice(state["rows"], state["every_n"], state["overhead"]), state["origin"])

    @property
    def state(self) -> dict[str, Any] | None:
        """What was chosen, in plain numbers; None while that is being measured."""
        if self._choice is None or self._pace is None:
            return None
        return {**asdict(self._choice), "origin": self._pace.origin, **self._settings}

    def at(self, step: int) -> Share | None:
        """See `Pace`."""
        if self._pace is not None:
            return self._pace.at(step)
        self._asked = True
        rows, kinds = self._planned(step), len(self.kinds)
        return Share(self._over_ranks(rows), kinds / (kinds - 1)) if rows else None

    def before_batch(self, trainer: Trainer) -> None:
        """Begin to time a batch, and before that choose, if all is measured; on every rank."""
        step = steps_taken(trainer)
        if self._pace is not None:
            # Whole intervals: each due step stands for those up to the next.
            every_n, origin = self._pace.every_n, self._pace.origin
            if step >= origin + every_n * math.ceil(REST_STEPS / every_n):
                self._measure_from(step)
        elif step >= self._begin + BLOCKS * len(self.kinds):
            choice = trainer.strategy.broadcast(self._choose())  # the first rank's, for all
            if choice is None:
                self._measure_from(step)
            else:
                self._use(choice, step)
                self._tell(trainer, choice, step)
        self._step, self._asked = step, False
        self._started_s = now_s(trainer.strategy.root_device) if self._pace is None else None

    def after_batch(self, trainer: Trainer, skipped: bool) -> None:
        """Time a batch while measuring."""
        if self._started_s is not None:
            taken = now_s(trainer.strategy.root_device) - self._started_s
            self._step_s[self._step] = self._step_s.get(self._step, 0.0) + taken
            if self._asked and not skipped:
                self._trained.add(self._step)

    def _measure_from(self, step: int) -> None:
        self._begin = step
        self._pace: EveryN | None = None
        self._choice: Choice | None = None
        self._step_s: dict[int, float] = {}
        self._trained: set[int] = set()  # steps of which no batch was trained on do not count

    def _use(self, choice: Choice, origin: int) -> None:
        self._choice = choice
        self._pace = EveryN(choice.every_n, self._over_ranks(choice.rows), origin)

    def _over_ranks(self, rows: int) -> int:
        return min(rows * self.world, self.all_rows)

    def _planned(self, step: int) -> int:
        """Rows of each rank in a step of the measuring."""
        block, place = divmod(step - self._begin, len(self.kinds))
        return random.Random(block).sample(self.kinds, len(self.kinds))[place]

    def _choose(self) -> Choice | None:
        """What the times say; None if too few steps were timed."""
        size = len(self.kinds)
        blocks: list[dict[int, float]] = []
        for first in range(self._begin + size, self._begin + BLOCKS * size, size):
            steps = [step for step in range(first, first + size) if step in self._trained]
            if len(steps) == size:  # none was skipped
                blocks.append({self._planned(step): self._step_s[step] for step in steps})
        if len(blocks) < BLOCKS // 2:
            return None
        plain = sorted(block[0] for block in blocks)[(len(blocks) - 1) // 2]
        one, most = (
            # The next above the median: with 7 blocks, the true median is below it in 77% of all
            # cases, however the times are distributed.
            max(0.0, sorted(block[rows] - block[0] for block in blocks)[len(blocks) // 2 + 1])
            for rows in (1, self.most_rows)
        )
        per_row = max(0.0, most - one) / max(1, self.most_rows - 1)
        spent = BLOCKS * sum(one + (rows - 1) * per_row for rows in self.kinds[1:])
        # What is left per step of the rest.
        total = REST_STEPS + BLOCKS * size
        left = (self.budget * total - spent / plain) / REST_STEPS
        choice = choose(plain, one - per_row, per_row, left, self.most_rows)
        overhead = (spent / plain + REST_STEPS * choice.overhead) / total
        return Choice(choice.rows, choice.every_n, overhead)

    def _tell(self, trainer: Trainer, choice: Choice, step: int) -> None:
        rows = self._over_ranks(choice.rows)
        values = {"rows": rows, "every_n": choice.every_n, "overhead": choice.overhead}
        prefix = f"circuit/{self.circuit.name}/budget"
        log_metrics(trainer, {f"{prefix}/{key}": float(x) for key, x in values.items()}, step)
        if self._told == (rows, choice.every_n):
            return
        self._told = rows, choice.every_n
        what = f"{rows} probe rows every {choice.every_n} steps"
        if choice.overhead > self.budget + 1e-6:
            rank_zero_warn(
                f"CircuitPreservation: the penalty for circuit {self.circuit.name!r} cannot be "
                f"kept within budget={self.budget}: even {what} add {choice.overhead:.1%} to the "
                "training time; the run goes on with that; raise the budget, or use a penalty "
                "without BehaviourKL, shorter probe rows or larger batches"
            )
        else:
            rank_zero_info(
                f"CircuitPreservation: budget={self.budget} allows {what} for circuit "
                f"{self.circuit.name!r}: {choice.overhead:.1%} of the training time"
            )


def pace_of(
    trainer: Trainer,
    circuit: Circuit,
    every_n_steps: int,
    rows_per_step: int,
    budget: float | None,
    state: Mapping[str, Any] | None,
) -> Pace:
    """The pace of a training that begins, or goes on with `state`."""
    if budget is None:
        return EveryN(every_n_steps, rows_per_step)
    world = place_of(trainer)[1]
    return WithinBudget(budget, rows_per_step, circuit, world, steps_taken(trainer), state)


def now_s(device: torch.device) -> float:
    """Seconds on a clock, when the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
