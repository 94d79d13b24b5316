from dataclasses import replace
from io import StringIO

from rich.console import Console

from circuitkeep.compare.terminal import print_report

NAN = float("nan")


def printed(report, width):
    console = Console(width=width, file=StringIO())
    print_report(report, console)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_one_line_per_checkpoint_in_100_columns(report):
    lines = printed(report, 100)
    assert lines[0].split("  ")[0] == "checkpoint"
    assert [" ".join(line.split()) for line in lines[2:6]] == [
        "base 100% of 0.95 100% of 3.31 100% of 0.99 4.012 1.204",
        "unregularized 35% [32,38] 2% [-4,8] 2% [0,4] 0.213 -3.799 3.871 +2.667",
        "patterns-only 99% [96,102] 90% [84,96] 13% [11,15] 0.219 -3.793 3.242 +2.038",
        "regularized 97% [94,100] 98% [92,104] 99% [97,101] 0.224 -3.788 1.231 +0.027",
    ]
    assert max(map(len, lines)) <= 100


def test_narrow_terminal_puts_intervals_below_and_loses_nothing(report):
    lines = printed(report, 80)
    assert max(map(len, lines)) <= 80
    (row,) = (i for i, line in enumerate(lines) if line.startswith("regularized"))
    assert lines[row].split() == ["regularized", "97%", "98%", "99%", "0.224", "1.231"]
    assert lines[row + 1].split() == ["[94,100]", "[92,104]", "[97,101]", "-3.788", "+0.027"]


def test_more_datasets_than_fit_run_past_the_edge(report):
    def crowded(checkpoint):
        (loss, *_) = checkpoint.capability.values()
        return replace(checkpoint, capability={f"dataset {i}": loss for i in range(8)})

    crowd = replace(
        report,
        base=crowded(report.base),
        checkpoints=tuple(map(crowded, report.checkpoints)),
    )
    lines = printed(crowd, 80)
    assert sum(line.count("-3.788") for line in lines) == 8


def test_circuits_share_a_checkpoints_row(report):
    def doubled(checkpoint):
        return replace(checkpoint, circuits={**checkpoint.circuits, "ioi": result})

    result = report.base.circuits["induction"]
    two = replace(
        report,
        base=doubled(report.base),
        checkpoints=tuple(map(doubled, report.checkpoints)),
        circuits=report.circuits | {"ioi": report.circuits["induction"]},
    )
    lines = printed(two, 120)
    (row,) = (i for i, line in enumerate(lines) if line.startswith("regularized"))
    assert lines[row].split()[1:3] == ["induction", "97%"]
    other = " ".join(lines[row + 1].split())
    assert other == "ioi 100% [97,103] 100% [94,106] 100% [98,102]"


def test_nan_is_not_available_and_markup_is_text(report):
    result = replace(
        report.base.circuits["induction"],
        causal_retention=NAN,
        causal_interval=(NAN, NAN),
    )
    checkpoint = replace(
        report.checkpoints[0], name="[bold]x[/nope]", circuits={"induction": result}
    )
    text = "\n".join(printed(replace(report, checkpoints=(checkpoint,)), 120))
    assert "n/a" in text
    assert "nan" not in text
    assert "[bold]x[/nope]" in text


def test_what_moved_stands_below_the_table(report):
    lines = printed(report, 160)
    assert lines[-1] == (
        "unregularized: previous token: L0H2 lost it and L0H3 took it up; "
        "induction: L1H0, L1H3 lost it and L0H3 took it up"
    )
    still = replace(report, checkpoints=report.checkpoints[1:])
    assert "lost it" not in "".join(printed(still, 160))


def test_replicates_and_the_matrix_are_printed(everything):
    lines = "\n".join(printed(everything, 60))
    for part in ("guarded", "+30 pts, p .004", "50% [40, 60]", "+0.300, p .004"):
        assert part in lines
    for kind in ("identity", "causal", "behaviour"):
        assert f"{kind}: trained on (rows)," in lines
    assert "90% [80,100]" in lines
    assert "n/a" in lines


def test_without_further_probes_the_first_table_says_it_all(everything):
    transfer = replace(everything.transfer, columns=everything.transfer.columns[:1])
    assert "probed on" not in "\n".join(printed(replace(everything, transfer=transfer), 100))
