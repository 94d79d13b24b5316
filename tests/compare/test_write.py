import json
from pathlib import Path

import pytest

from circuitkeep.compare import write
from circuitkeep.compare.write import write_report


def test_writes_all_files_and_returns_their_paths(report, tmp_path):
    data, table, page = write_report(report, tmp_path / "new" / "folder")
    assert data == tmp_path / "new" / "folder" / "report.json"
    assert json.loads(data.read_text("utf-8"))["base"]["name"] == "base"
    assert page.read_text("utf-8").startswith("<!doctype html>")
    assert table.read_text("utf-8").startswith("checkpoint,step,trained_on,of,")
    names = ["report.csv", "report.html", "report.json"]
    assert sorted(path.name for path in data.parent.iterdir()) == names


def test_a_failed_render_leaves_the_earlier_report(report, tmp_path, monkeypatch):
    paths = write_report(report, tmp_path)
    before = [path.read_bytes() for path in paths]

    def broken(report):
        raise RuntimeError("template")

    monkeypatch.setattr(write, "render_page", broken)
    with pytest.raises(RuntimeError, match="template"):
        write_report(report, tmp_path)
    assert [path.read_bytes() for path in paths] == before


def test_a_full_disk_leaves_the_earlier_file_and_no_half(report, tmp_path, monkeypatch):
    paths = write_report(report, tmp_path)
    before = [path.read_bytes() for path in paths]

    def full(self, text, encoding):
        with open(self, "w", encoding=encoding) as file:
            file.write(text[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(report, tmp_path)
    assert [path.read_bytes() for path in paths] == before
    assert len(list(tmp_path.iterdir())) == 3
