"""Whether a checkpoint's answers come about as the base's do: their attribution graphs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from rich import box
from rich.table import Table
from rich.text import Text
from torch import Tensor

from circuitkeep.capture import Backend
from circuitkeep.compare.report import CheckpointResult, GraphResult, Report
from circuitkeep.compare.wording import percent_interval
from circuitkeep.functional import mean_interval
from circuitkeep.graphs.answers import Influences, answer_influences, overlaps
from circuitkeep.pages import percent
from circuitkeep.probes import ProbeBatch
from circuitkeep.transcoders.quality import measure_quality
from circuitkeep.transcoders.replacement import check_fits
from circuitkeep.transcoders.storage import load_transcoder

_LEAST = 2


class GraphQuestion:
    """How the graphs of answers are compared.

    Args:
        rows: Of each circuit's prompts that are traced.
        transcoder: Folder of a transcoder of the base, whose features are compared; None to
            compare what heads carry from key to query.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no transcoder, or there are too few rows.
    """

    def __init__(self, rows: int, transcoder: str | os.PathLike[str] | None = None) -> None:
        if rows < _LEAST:
            raise ValueError(f"graphs of {rows} prompts: give at least {_LEAST}, for an interval")
        self.rows = rows
        self.parts = "what heads carry from key to query" if transcoder is None else "features"
        self._transcoder = None if transcoder is None else load_transcoder(Path(transcoder))
        self._base: dict[str, tuple[Influences | None, ...]] = {}

    def result(
        self, backend: Backend, batches: Mapping[str, ProbeBatch]
    ) -> tuple[dict[str, GraphResult], float | None]:
        """What a model shares with the first that was asked, which is the base.

        Args:
            backend: The model.
            batches: Circuit -> its prompts, the same for every model.

        Returns:
            By circuit; and the share of the variance of this model's MLP outputs that the
            transcoder explains on those prompts, the mean over layers.

        Raises:
            ValueError: If the transcoder is of another model, or the model cannot be traced.
        """
        if self._transcoder is not None:
            check_fits(backend, self._transcoder.to(backend.device))
        found = {
            name: answer_influences(backend, batch, self.rows, self._transcoder)
            for name, batch in batches.items()
        }
        self._base = self._base or found
        return {
            name: _compared(influences, self._base[name]) for name, influences in found.items()
        }, self._explained(backend, list(batches.values()))

    def _explained(self, backend: Backend, batches: Sequence[ProbeBatch]) -> float | None:
        if self._transcoder is None:
            return None
        shares = [
            torch.tensor(
                measure_quality(
                    backend, self._transcoder, batch.tokens[: self.rows], batch.mask[: self.rows]
                ).explained_variance
            )
            for batch in batches
        ]
        return torch.stack(shares).mean().item()


def _compared(now: Sequence[Influences | None], base: Sequence[Influences | None]) -> GraphResult:
    traced = [place for place, own in enumerate(base) if own is not None]
    mine, its = [now[place] for place in traced], [base[place] for place in traced]
    shared = overlaps(mine, its)
    # Every prompt against the next one's.
    apart = overlaps(mine, [*its[1:], its[0]])
    return GraphResult(
        shared=shared.nanmean().item(),
        interval=_interval(shared),
        other_prompts=apart.nanmean().item(),
        rows=len(traced),
    )


def _interval(values: Float[Tensor, " row"]) -> tuple[float, float]:
    low, high = mean_interval(values[None])
    return low.item(), high.item()


def explained(checkpoint: CheckpointResult) -> str:
    """``81%``, or a dash without a transcoder."""
    return "–" if checkpoint.explained is None else percent(checkpoint.explained)


def render_graphs(report: Report) -> Table:
    """A line per checkpoint and circuit."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    table.title, table.title_justify = f"attribution graphs: {report.graph_parts}", "left"
    table.add_column("checkpoint", overflow="fold")
    table.add_column("circuit", overflow="fold")
    for name in ("shared with the base", "with other prompts", "explained"):
        table.add_column(name, justify="right", no_wrap=True)
    for checkpoint in (report.base, *report.checkpoints):
        for place, (circuit, result) in enumerate(checkpoint.graphs.items()):
            table.add_row(
                Text("" if place else checkpoint.name, style="bold"),
                Text(circuit),
                Text.assemble(
                    percent(result.shared), " ", (percent_interval(result.interval), "dim")
                ),
                percent(result.other_prompts),
                "" if place else explained(checkpoint),
            )
    return table
