import os

import pytest

from circuitkeep.watch.growing import GrowingCsv


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.csv"


def rows(*pairs):
    return [{"step": step, "loss": loss} for step, loss in pairs]


def append(path, text):
    with path.open("a", newline="") as file:
        file.write(text)


def test_there_is_no_file_yet(path):
    file = GrowingCsv(path)
    assert file.read() == (False, [])
    path.touch()
    assert file.read() == (False, [])
    append(path, "step,loss\r\n0,1.5\r\n")
    assert file.read() == (False, rows(("0", "1.5")))


def test_every_row_comes_once(path):
    file = GrowingCsv(path)
    append(path, "step,loss\n0,1\n")
    assert file.read() == (False, rows(("0", "1")))
    assert file.read() == (False, [])
    append(path, "1,2\n\n2,\n")
    assert file.read() == (False, rows(("1", "2"), ("2", "")))
    assert file.read() == (False, [])


@pytest.mark.parametrize("cut", range(len("12,0.25\r\n")))
def test_half_a_line_waits_for_its_other_half(path, cut):
    file = GrowingCsv(path)
    line = "12,0.25\r\n"
    append(path, "step,loss\r\n0,1\r\n" + line[:cut])
    assert file.read() == (False, rows(("0", "1")))
    append(path, line[cut:])
    assert file.read() == (False, rows(("12", "0.25")))


@pytest.mark.parametrize("cut", range(len("step,loss\n")))
def test_half_a_header_waits_too(path, cut):
    file = GrowingCsv(path)
    append(path, "step,loss\n"[:cut])
    assert file.read() == (False, [])
    append(path, "step,loss\n"[cut:] + "0,1\n")
    assert file.read() == (False, rows(("0", "1")))


def test_a_line_break_between_quotes_ends_no_line(path):
    file = GrowingCsv(path)
    append(path, 'step,"a ""b""\nc"\n0,1\n1,"x\ny')
    assert file.read() == (False, [{"step": "0", 'a "b"\nc': "1"}])
    append(path, '"\n')
    assert file.read() == (False, [{"step": "1", 'a "b"\nc': "x\ny"}])


def test_a_column_more_makes_all_rows_new(path):
    """As Lightning does it: the same file, opened for writing, and longer than before."""
    file = GrowingCsv(path)
    append(path, "loss,step\n1,0\n2,1\n")
    file.read()
    path.write_text("accuracy,loss,step\n,1,0\n,2,1\n1,3,2\n")
    wanted = [("", "1", "0"), ("", "2", "1"), ("1", "3", "2")]
    names = ("accuracy", "loss", "step")
    assert file.read() == (True, [dict(zip(names, cells, strict=True)) for cells in wanted])
    append(path, "1,4,3\n")
    assert file.read() == (False, [{"accuracy": "1", "loss": "4", "step": "3"}])


def test_a_rewriting_is_seen_half_done(path):
    file = GrowingCsv(path)
    append(path, "step,loss\n0,1\n1,2\n")
    file.read()
    path.write_text("")
    assert file.read() == (True, [])
    path.write_text("step,loss\n0,1\n1,")
    assert file.read() == (False, rows(("0", "1")))


@pytest.mark.parametrize("text", ["step,loss\n5,6\n", "step,loss\n0,9\n1,2\n", "step,loss\n"])
def test_a_file_in_its_place_is_read_from_the_start(path, text):
    file = GrowingCsv(path)
    append(path, "step,loss\n0,1\n1,2\n")
    file.read()
    other = path.with_name("other.csv")
    other.write_text(text)
    os.replace(other, path)
    void, found = file.read()
    assert void
    assert [",".join(row.values()) for row in found] == text.split()[1:]


def test_a_longer_file_of_the_same_columns_written_in_place_is_new(path):
    file = GrowingCsv(path)
    append(path, "step,loss\n0,1\n1,2\n")
    file.read()
    path.write_text("step,loss\n0,7\n1,8\n2,9\n")
    assert file.read() == (True, rows(("0", "7"), ("1", "8"), ("2", "9")))


def test_a_file_that_vanishes_and_comes_back(path):
    file = GrowingCsv(path)
    append(path, "step,loss\n0,1\n")
    file.read()
    path.rename(path.with_name("kept"))
    assert file.read() == (False, [])
    append(path, "step,loss\n0,2\n")
    assert file.read() == (True, rows(("0", "2")))


def test_what_is_no_csv_is_no_row(path):
    path.write_bytes(b"\xff\xfe\x00,\x80\n\x00\n" + b"x" * 200_000 + b"\n")
    assert GrowingCsv(path).read()[1] == []
    path.write_bytes(b"step,loss\n0,\xff\n1,2,3,4\n2\n")
    found = GrowingCsv(path).read()[1]
    assert found == [*rows(("0", "�"), ("1", "2")), {"step": "2"}]
