import csv
import io
from dataclasses import replace

from circuitkeep.compare.long_table import COLUMNS, to_csv


def rows(report):
    return list(csv.DictReader(io.StringIO(to_csv(report))))


def find(report, **wanted):
    found = [row for row in rows(report) if wanted.items() <= row.items()]
    (row,) = found
    return row


def test_every_figure_is_a_line(report):
    row = find(report, checkpoint="regularized", quantity="causal_retention")
    assert (row["of"], float(row["value"])) == ("induction", 0.98)
    assert (float(row["low"]), float(row["high"])) == (0.98 - 0.06, 0.98 + 0.06)
    row = find(report, checkpoint="base", of="repeats", quantity="loss_nats")
    assert (row["value"], row["low"], row["step"]) == ("1.204", "", "")
    one = {"checkpoint": "unregularized", "head": "L1H3"}
    assert float(find(report, **one, quantity="contribution_logits")["value"]) == 7.25 * 0.02
    assert find(report, **one, quantity="lost")["role"] == "induction"
    assert float(find(report, **one, role="induction", quantity="score")["value"]) == 0.95 * 0.35
    assert len([row for row in rows(report) if row["quantity"] == "score"]) == 4 * 2 * 8


def test_nan_is_an_empty_cell(report):
    assert find(report, checkpoint="base", role="induction", quantity="top_10")["value"] == ""


def test_names_are_quoted_and_steps_stand_beside_them(trajectory):
    name = 'a,"b"\nc'
    checkpoints = (replace(trajectory.checkpoints[0], name=name), *trajectory.checkpoints[1:])
    report = replace(trajectory, checkpoints=checkpoints)
    assert {row["step"] for row in rows(report) if row["checkpoint"] == name} == {"100"}
    assert list(rows(report)[0]) == list(COLUMNS)


def test_replicates_and_further_probes_are_lines(everything):
    row = find(everything, checkpoint="guarded", of="induction", quantity="causal_retention")
    assert (float(row["value"]), float(row["low"]), float(row["high"])) == (0.5, 0.4, 0.6)
    assert row["trained_on"] == "key-value"
    row = find(everything, checkpoint="guarded", quantity="behaviour_difference")
    assert float(row["value"]) == 0.3
    row = find(everything, checkpoint="guarded", quantity="behaviour_difference_p_holm")
    assert float(row["value"]) == 0.004
    row = find(
        everything, checkpoint="guarded", of="induction, longer", quantity="causal_retention"
    )
    assert float(row["value"]) == 0.9
    # What the circuit's own probe says of a checkpoint stands there once.
    find(everything, checkpoint="regularized", of="induction", quantity="causal_retention")
