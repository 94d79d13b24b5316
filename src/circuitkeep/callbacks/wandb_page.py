"""A page of a W&B project: what `CircuitMonitor` and `CapabilityEvals` log, of all its runs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from circuitkeep.callbacks.wandb_views import CHART, CHART_FIELDS, chart_table
from circuitkeep.circuits import Circuit

KINDS = ("report", "workspace")
_RETENTIONS = ("identity_retention", "causal_retention", "behaviour_retention")
_MOVES = ("lost", "risen")


def build_page(kind: str, project: str, circuits: Sequence[Circuit]) -> Any:
    """A report, or a saved view of the project's workspace; `save_page` uploads it.

    Args:
        kind: "report" or "workspace".
        project: ENTITY/PROJECT.
        circuits: Of which the runs' monitors logged.

    Returns:
        A ``wandb_workspaces.reports.v2.Report``, or a ``wandb_workspaces.workspaces.Workspace``.

    Raises:
        ValueError: If an argument is not of that form, or wandb-workspaces is missing.
    """
    entity, slash, name = project.partition("/")
    if not (entity and slash and name) or "/" in name:
        raise ValueError(f"project must be ENTITY/PROJECT, got {project!r}")
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    reports, workspaces = _library()
    sections = _sections(reports, circuits)
    where = {"entity": entity, "project": name}
    if kind == "workspace":
        parts = [
            workspaces.Section(name=title, panels=panels, is_open=True)
            for title, panels in sections.items()
        ]
        return workspaces.Workspace(**where, name="Circuits", sections=parts)
    blocks = [
        block
        for title, panels in sections.items()
        for block in (
            reports.H2(text=title),
            reports.PanelGrid(runsets=[reports.Runset(**where)], panels=panels),
        )
    ]
    return reports.Report(**where, title="Circuits", blocks=blocks)


def save_page(page: Any) -> str:
    """Upload what `build_page` built.

    Returns:
        Its address.

    Raises:
        ValueError: If nobody is logged in, or W&B refuses or cannot be reached.
    """
    import wandb

    try:
        wandb.Api()  # asks for a login where there is a terminal
        page.save()
    except Exception as error:  # wandb has its own kinds, and wandb-workspaces raises plain ones
        raise ValueError(
            f"W&B did not take the page ({type(error).__name__}: {error}); `wandb login` logs in"
        ) from error
    return page.url


def _library() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():
            # wandb-workspaces 0.4 uses what pydantic calls outdated.
            warnings.simplefilter("ignore", DeprecationWarning)
            import wandb_workspaces.reports.v2 as reports
            from wandb_workspaces import workspaces
    except ImportError as error:
        raise ValueError(
            "W&B's pages need wandb-workspaces: pip install 'circuitkeep[wandb-report]'"
        ) from error
    return reports, workspaces


def _sections(reports: Any, circuits: Sequence[Circuit]) -> Mapping[str, list[Any]]:
    def lines(title: str, *keys: str, **more: Any) -> Any:
        return reports.LinePlot(title=title, x="trainer/global_step", y=list(keys), **more)

    found: dict[str, list[Any]] = {}
    for circuit in circuits:
        prefix = f"circuit/{circuit.name}"
        scores = [f"{prefix}/{role.name}/score" for role in circuit.roles]
        moves = [f"{prefix}/{role.name}/{what}" for role in circuit.roles for what in _MOVES]
        found[circuit.name] = [
            lines("Retention", *(f"{prefix}/{kind}" for kind in _RETENTIONS)),
            lines("Behaviour", f"{prefix}/behaviour"),
            lines("Effect of ablating the heads, nats", f"{prefix}/causal_effect_nats"),
            lines("Score of each role", *scores),
            lines("Heads lost and risen", *moves),
            reports.CustomChart(
                query={"summaryTable": {"tableKey": chart_table(circuit)}},
                chart_name=CHART,
                chart_fields=CHART_FIELDS,
                chart_strings={"title": "Scores of the named heads", "xname": "step"},
            ),
            reports.MediaBrowser(title="Heads", media_keys=[f"{prefix}/heads"], num_columns=1),
        ]
    found["Capability"] = [
        lines("Loss, nats", metric_regex="capability/.*/loss_nats"),
        lines("Accuracy", metric_regex="capability/.*/accuracy"),
        lines("The task's validation loss, nats", "val/loss_nats"),
    ]
    return found
