"""Writing a comparison to files."""

from __future__ import annotations

import os
from pathlib import Path

from circuitkeep.compare import attention
from circuitkeep.compare.long_table import to_csv
from circuitkeep.compare.page import render_page
from circuitkeep.compare.report import Report
from circuitkeep.files import replacing


def write_report(report: Report, directory: str | os.PathLike[str]) -> list[Path]:
    """Write ``report.json``, ``report.csv`` and ``report.html``, each whole or not at all.

    With prompts also ``attention.csv``.

    Returns:
        The paths, that of the page last.

    Raises:
        OSError: If the folder cannot be written; files of an earlier report stay as they were.
    """
    folder = Path(directory)
    contents = {"report.json": report.to_json(), "report.csv": to_csv(report)}
    if report.prompts:
        contents["attention.csv"] = attention.to_csv(report)
    contents["report.html"] = render_page(report)
    for name, content in contents.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return [folder / name for name in contents]
