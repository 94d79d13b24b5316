"""Writing a comparison to files."""

from __future__ import annotations

import os
from pathlib import Path

from circuitkeep.compare.long_table import to_csv
from circuitkeep.compare.page import render_page
from circuitkeep.compare.report import Report
from circuitkeep.files import replacing


def write_report(report: Report, directory: str | os.PathLike[str]) -> tuple[Path, Path, Path]:
    """Write ``report.json``, ``report.csv`` and ``report.html``, each whole or not at all.

    Returns:
        The paths of all three.

    Raises:
        OSError: If the folder cannot be written; files of an earlier report stay as they were.
    """
    folder = Path(directory)
    data, table, page = (folder / f"report.{kind}" for kind in ("json", "csv", "html"))
    contents = {data: report.to_json(), table: to_csv(report), page: render_page(report)}
    for path, content in contents.items():
        with replacing(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return data, table, page
