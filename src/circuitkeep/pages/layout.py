"""A page as one HTML file that needs no network."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

HERE = Path(__file__).parent


def render(
    template: Path, style: str, scripts: Sequence[str], data: Any, content: Mapping[str, Any]
) -> str:
    """A page of which nothing is loaded: style, scripts and data are inlined.

    Names from outside are escaped, and a content security policy lets no script but these run.

    Args:
        template: Extends ``layout.html.j2``: blocks ``title``, ``header``, ``main``; with scripts
            also ``without``, what a reader without JavaScript is told.
        style: Comes after ``base.css``.
        scripts: Texts of JavaScript, run in this order; there may be none.
        data: What the scripts read from the element ``data``; JSON, so finite numbers only.
        content: What the template names.

    Raises:
        ValueError: If a number of `data` is not finite.
    """
    environment = Environment(
        loader=FileSystemLoader([HERE, template.parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {
        "allow_nan": False,
        "ensure_ascii": False,
        "separators": (",", ":"),
    }
    environment.filters |= {"minus": _minus, "capitalize_first": _capitalize_first}
    return environment.get_template(template.name).render(
        {
            **content,
            "data": data,
            "style": Markup(base_style() + style),
            "scripts": [Markup(script) for script in scripts],
            "script_hashes": " ".join(f"'sha256-{_digest(script)}'" for script in scripts)
            or "'none'",
        }
    )


def base_style() -> str:
    """The style that all pages have."""
    return shared_script("base.css")


def shared_script(name: str) -> str:
    """A file of this room.

    ``sorting.js`` makes tables of class ``sorts`` sort; ``charts.js`` draws the charts among the
    page's data where the page has ``data-chart`` with their number.
    """
    return (HERE / name).read_text(encoding="utf-8")


def _minus(text: str) -> str:
    """Numbers with a minus sign, which is as wide as a plus; hyphens in names stay."""
    return re.sub(r"(?<![^\s\[(])-(?=\d)", "−", text)


def _capitalize_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
