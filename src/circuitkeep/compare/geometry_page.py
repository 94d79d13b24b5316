"""Manifolds before and after, as plotly.js figures and as tables."""

from __future__ import annotations

import math

from circuitkeep.compare.charts import Chart, label
from circuitkeep.compare.report import CheckpointResult, Report
from circuitkeep.compare.wording import percent_interval
from circuitkeep.manifolds.drift import Estimate
from circuitkeep.manifolds.head_drift import HeadDrift
from circuitkeep.pages import number, percent, signed
from circuitkeep.pages.space import manifold_trace, space_axes

HEADINGS = {
    "shape": "shape kept",
    "place": "place kept",
    "translation": "translation",
    "log_scale": "size",
    "rotation": "rotation",
    "tilt": "tilt",
}
HEAD_HEADINGS = ("OV turned", "OV size", "OV shift", "QK turned", "QK size")
_SHARES = ("shape", "place")
_ANGLES = ("rotation", "tilt")


def said(figure: str, value: float) -> str:
    """``97%`` of shape and place, radii, ``+5%`` of the size, degrees."""
    if figure in _SHARES or not math.isfinite(value):
        return percent(value)
    if figure == "log_scale":
        return f"{signed(100 * math.expm1(value), 0)}%"
    return f"{math.degrees(value):.0f}°" if figure in _ANGLES else number(value)


def interval(figure: str, found: Estimate) -> str:
    """``[94, 99]``, in the unit of the figure; nothing where a bound is NaN."""
    if figure in _SHARES or not (math.isfinite(found.low) and math.isfinite(found.high)):
        return percent_interval((found.low, found.high))
    low, high = (said(figure, end).rstrip("%°") for end in (found.low, found.high))
    return f"[{low}, {high}]"


def null(figure: str, value: float) -> str:
    """What random halves differ by: ``≥ 97%`` or ``≤ 4°``; of the size both ways."""
    if figure == "log_scale":
        return f"± {said(figure, value).removeprefix('+')}"
    return f"{'≥' if figure in _SHARES else '≤'} {said(figure, value)}"


def head_figures(drift: HeadDrift) -> tuple[str, ...]:
    """In the order of `HEAD_HEADINGS`."""
    return (
        said("rotation", drift.ov_angle),
        said("log_scale", drift.ov_log_scale),
        number(drift.ov_translation),
        said("rotation", drift.qk_angle),
        said("log_scale", drift.qk_log_scale),
    )


def manifold_chart(report: Report, circuit: str, name: str) -> Chart:
    """Class means in the base's first three components; a frame for each checkpoint.

    The base's stand behind as a grey line, so that what moved can be seen.
    """
    manifold = report.circuits[circuit].manifolds[name]
    models = [_trace(each, circuit, name) for each in (report.base, *report.checkpoints)]
    variable = label(manifold.variable)
    shown = models[-1] | manifold_trace(variable, manifold.values, {}, "right")
    before = {
        **models[0],
        "type": "scatter3d",
        "mode": "lines",
        "text": [f"base, {text}" for text in shown["text"]],
        "hoverinfo": "text",
        "line": {"color": "var(--bar)", "width": 4, "dash": "dot"},
    }
    names = map(label, frame_names(report))
    frames = [{"name": name, "data": [points]} for name, points in zip(names, models, strict=True)]
    return {"data": [shown, before], "layout": _layout(), "frames": frames}


def frame_names(report: Report) -> list[str]:
    """Of what the page's list or slider chooses from, the base first."""
    if report.steps:
        return ["base", *(f"step {step}" for step in report.steps)]
    return [each.name for each in (report.base, *report.checkpoints)]


def _trace(model: CheckpointResult, circuit: str, name: str) -> dict[str, list[float]]:
    points = model.geometry[circuit].manifolds[name].points
    return {
        axis: [round(value, 4) for value in values]
        for axis, values in zip("xyz", zip(*points, strict=True), strict=True)
    }


def _layout() -> Chart:
    axes = space_axes([f"PC{place + 1}" for place in range(3)])
    # Axes of one scale, so that a circle is round; the view stays where it was turned to.
    camera = {"eye": {"x": 1.6, "y": 1.6, "z": 0.8}, "center": {"x": 0.1, "y": -0.1, "z": -0.15}}
    return {
        "height": 420,
        "margin": {"l": 0, "r": 0, "t": 26, "b": 0},
        "showlegend": False,
        "uirevision": "kept",
        "scene": {**axes, "aspectmode": "data", "camera": camera},
    }
