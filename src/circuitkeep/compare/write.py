"""Writing a comparison to files."""

from __future__ import annotations

import os
from pathlib import Path

from circuitkeep.compare.page import render_page
from circuitkeep.compare.report import Report
from circuitkeep.files import replacing


def write_report(report: Report, directory: str | os.PathLike[str]) -> tuple[Path, Path]:
    """Write ``report.json`` and ``report.html``, each whole or not at all.

    Returns:
        The paths of both.

    Raises:
        OSError: If the folder cannot be written; files of an earlier report stay as they were.
    """
    contents = {"report.json": report.to_json(), "report.html": render_page(report)}
    for name, content in contents.items():
        with replacing(Path(directory) / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return Path(directory) / "report.json", Path(directory) / "report.html"
