import re
from io import StringIO

from rich.console import Console

from circuitkeep.compare import progress
from circuitkeep.compare.progress import progress_bar


def drawn(monkeypatch, **settings):
    clock = iter([0.0, 0.0, 1.5, 1.5, 64.0, 64.0, 64.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    console = Console(file=StringIO(), width=100, **settings)
    with progress_bar(2, console) as begin:
        begin("base")
        begin("[bold]x[/nope]")
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


def test_says_what_is_measured_and_how_long_each_took(monkeypatch):
    text = drawn(monkeypatch, force_terminal=True)
    assert "measured base in 1.5 s" in text
    assert "measured [bold]x[/nope] in 62.5 s" in text
    assert re.search(r"measuring \[bold\]x\[/nope\] .* 1/2 .* left", text)


def test_one_line_where_there_is_no_terminal(monkeypatch):
    assert drawn(monkeypatch, force_terminal=False) == "2 models in 64.0 s, 32.0 s each\n"
