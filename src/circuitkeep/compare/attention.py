"""A head's attention on a prompt of the user's, as plotly.js figures and as one table."""

from __future__ import annotations

import csv
import io
from typing import Any

from circuitkeep.compare.charts import Chart, label
from circuitkeep.compare.prompts import Prompt
from circuitkeep.compare.report import Report
from circuitkeep.pages.attention import packed

SIDE_PX, LETTER_PX, LABEL_PX = 312, 6.6, 11.5
"""Of a matrix, of a letter, and what a token's label needs."""
LETTERS = 9
"""Of a token that are written at the axes."""
LEAST = 0.5 / 255
"""Attention that is left out of the table: what a page shows as none."""


def attention_chart(tokens: tuple[str, ...], difference: bool = False) -> Chart:
    """A matrix without its cells: queries down, keys across; a difference has colours about 0.

    Tokens are written at the axes where there is room for all, else every few positions.
    """
    shown = [label(_short(token)) for token in tokens]
    edge = min(LETTERS, max(len(_short(token)) for token in tokens)) * LETTER_PX + 12
    step = 1 if (SIDE_PX - edge) / len(tokens) >= LABEL_PX else _step(len(tokens))
    if step > 1:
        edge, shown = 34, [str(position) for position in range(len(tokens))]
    ticks = {"tickvals": list(range(0, len(tokens), step)), "ticktext": shown[::step]}
    heat = [f"var(--heat-{stop})" for stop in range(5)]
    colours = [f"var(--minus-{stop})" for stop in (4, 3, 2, 1)] + heat if difference else heat
    axis: dict[str, Any] = {
        "fixedrange": True,
        "showgrid": False,
        "zeroline": False,
        "ticks": "",
        "tickfont": {"size": 10.5},
        **ticks,
    }
    ends = [-0.5, len(tokens) - 0.5]
    return {
        "data": [
            {
                "type": "heatmap",
                "zmin": -1 if difference else 0,
                "zmax": 1,
                "colorscale": [
                    [at / (len(colours) - 1), colour] for at, colour in enumerate(colours)
                ],
                "showscale": False,
                "xgap": 1 if len(tokens) <= 48 else 0,
                "ygap": 1 if len(tokens) <= 48 else 0,
                "hoverinfo": "text",
                "hoverongaps": False,
            }
        ],
        "layout": {
            "width": SIDE_PX,
            "height": SIDE_PX,
            "margin": {"l": edge, "r": 2, "t": edge, "b": 2},
            "dragmode": False,
            "xaxis": axis | {"side": "top", "tickangle": -90 if step == 1 else 0, "range": ends},
            "yaxis": axis | {"range": ends[::-1]},
        },
    }


def page_data(report: Report) -> dict[str, Any] | None:
    """What the page's script draws from: prompts, their tokens, and patterns of every model."""
    if not report.prompts:
        return None
    return {
        "models": [model.name for model in (report.base, *report.checkpoints)],
        "heads": list(report.prompts[0].heads),
        "prompts": [
            {
                "tokens": list(prompt.tokens),
                "patterns": [packed(patterns) for patterns in prompt.patterns],
                "chart": attention_chart(prompt.tokens),
                "difference": attention_chart(prompt.tokens, difference=True),
            }
            for prompt in report.prompts
        ],
    }


def filled_chart(prompt: Prompt, head: str, model: int, against: int | None = None) -> Chart:
    """A matrix with the cells of a model, minus those of another if given; for figures in files."""
    chart = attention_chart(prompt.tokens, difference=against is not None)
    cells = prompt.rows(model, head)
    if against is not None:
        cells = [
            [round(a - b, 3) for a, b in zip(now, before, strict=True)]
            for now, before in zip(cells, prompt.rows(against, head), strict=True)
        ]
        limit = max(0.1, *(abs(value) for row in cells for value in row))
        chart["data"][0] |= {"zmin": -limit, "zmax": limit}
    count = len(prompt.tokens)
    chart["data"][0]["z"] = [row + [None] * (count - len(row)) for row in cells]
    return chart


def to_csv(report: Report) -> str:
    """One line per prompt, model, named head, query and key that gets attention."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ("prompt", "checkpoint", "head", "query", "query_token", "key", "key_token", "attention")
    )
    models = (report.base, *report.checkpoints)
    for number, prompt in enumerate(report.prompts, 1):
        for place, model in enumerate(models):
            for head in report.named_heads:
                for query, row in enumerate(prompt.rows(place, head)):
                    for key, value in enumerate(row):
                        if value > LEAST:
                            named = (prompt.tokens[query], key, prompt.tokens[key])
                            table.writerow((number, model.name, head, query, *named, value))
    return text.getvalue()


def _short(token: str) -> str:
    return token if len(token) <= LETTERS else f"{token[: LETTERS - 1]}…"


def _step(count: int) -> int:
    return next((step for step in (5, 10, 20) if count / step <= 14), 50)
