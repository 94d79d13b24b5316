import json

import pytest
from lightning.pytorch.loggers import CSVLogger

from circuitkeep.callbacks.head_history import HeadHistory
from circuitkeep.watch.log import Log, Table


def told(state, news):
    """What a page knows after `news`; the same rule as in ``page_store.js``."""
    if news["reset"]:
        state = {}
    for table in news["tables"]:
        key, first = tuple(table["key"]), table["steps"][0]
        known = state.get(key, {})
        state[key] = {step: values for step, values in known.items() if step < first}
        for at, step in enumerate(table["steps"]):
            state[key][step] = {name: values[at] for name, values in table["columns"].items()}
    return state


def all_of(log):
    return told({}, log.since(""))


def test_a_table_drops_what_a_step_back_makes_void():
    table = Table()
    for row, (step, value) in enumerate([(0, 1.0), (10, 2.0), (20, 3.0), (10, 4.0)]):
        table.put(step, "a", value, row)
    assert (table.steps, table.columns) == ([0, 10], {"a": [1.0, 4.0]})
    table.put(5, "b", None, 4)
    assert (table.steps, table.columns) == ([0, 5], {"a": [1.0, None], "b": [None, None]})
    assert table.since(4) == {"steps": [5], "columns": {"a": [None], "b": [None]}}
    assert table.since(5) is None


def test_metrics_are_numbers_by_step(folder):
    (folder / "metrics.csv").write_text(
        "a/loss,epoch,note,step\n1.23456789,0,x,0\n,0,,1\nnan,0,,2\n-inf,0,,3\n2e-9,0,,4\n7,,,\n"
    )
    log = Log(folder)
    log.refresh()
    assert all_of(log) == {
        ("metrics", "a/loss"): {0: {"": 1.2346}, 2: {"": None}, 3: {"": None}, 4: {"": 2e-9}}
    }


def test_heads_by_circuit_role_and_quantity(folder, write_heads):
    write_heads(folder, [0, 10], {"L0H1": 0.5, "L1H0": ""})
    write_heads(folder, [0], {"L0H1": 0.25}, circuit="a/b", role="__proto__")
    log = Log(folder)
    log.refresh()
    found = all_of(log)
    assert found["heads", "induction", "induction", "score"] == {
        step: {"L0H1": 0.5, "L1H0": None} for step in (0, 10)
    }
    assert found["heads", "a/b", "__proto__", "retention"] == {0: {"L0H1": 0.25}}


def test_only_what_is_new_is_told(folder, write_heads, write_metrics):
    write_heads(folder, range(0, 1000, 10), {"L0H1": 0.5, "L0H2": 0.5})
    write_metrics(folder, [{"step": step, "loss": 1.5} for step in range(1000)])
    log = Log(folder)
    log.refresh()
    first = log.since("")
    assert len(json.dumps(first)) > 10_000
    nothing = log.since(first["cursor"])
    assert nothing == {"cursor": first["cursor"], "reset": False, "tables": []}
    write_heads(folder, [1000], {"L0H1": 0.25, "L0H2": 0.5})
    log.refresh()
    news = log.since(first["cursor"])
    assert [table["steps"] for table in news["tables"]] == [[1000], [1000]]
    assert told(told({}, first), news) == all_of(log)


def test_half_a_measurement_is_completed(folder, write_heads):
    write_heads(folder, [0], {"L0H1": 0.5, "L0H2": 0.5})
    write_heads(folder, [10], {"L0H1": 0.25})
    log = Log(folder)
    log.refresh()
    first = log.since("")
    write_heads(folder, [10], {"L0H2": 0.125})
    log.refresh()
    found = told(told({}, first), log.since(first["cursor"]))
    assert found["heads", "induction", "induction", "score"][10] == {"L0H1": 0.25, "L0H2": 0.125}
    assert found == all_of(log)


def test_a_resumed_run_takes_over(folder, write_heads):
    log = Log(folder)
    write_heads(folder, range(0, 50, 10), {"L0H1": 0.5})
    log.refresh()
    first = log.since("")
    write_heads(folder, [20, 30], {"L0H1": 0.25})
    log.refresh()
    found = told(told({}, first), log.since(first["cursor"]))
    series = found["heads", "induction", "induction", "score"]
    assert {step: value["L0H1"] for step, value in series.items()} == {
        0: 0.5,
        10: 0.5,
        20: 0.25,
        30: 0.25,
    }


def test_a_new_column_starts_the_page_over_and_keeps_the_heads(folder, write_heads, write_metrics):
    write_heads(folder, [0], {"L0H1": 0.5})
    write_metrics(folder, [{"step": 0, "b": 1}])
    log = Log(folder)
    log.refresh()
    first = log.since("")
    write_metrics(folder, [{"step": 0, "b": 1}, {"step": 1, "b": 2, "a": 3}])
    log.refresh()
    news = log.since(first["cursor"])
    assert news["reset"]
    assert told(told({}, first), news) == {
        ("metrics", "a"): {1: {"": 3.0}},
        ("metrics", "b"): {0: {"": 1.0}, 1: {"": 2.0}},
        ("heads", "induction", "induction", "score"): {0: {"L0H1": 0.5}},
        ("heads", "induction", "induction", "retention"): {0: {"L0H1": 0.5}},
    }


@pytest.mark.parametrize("cursor", ["", "x", "x:0", ":3", "{}:-1", "{}:x", "{}:²"])
def test_an_unknown_cursor_gets_everything(folder, write_heads, cursor):
    write_heads(folder, [0], {"L0H1": 0.5})
    log = Log(folder)
    log.refresh()
    generation = log.since("")["cursor"].split(":")[0]
    assert log.since(cursor.format(generation)) == log.since("")
    assert log.since(f"{generation}:0")["tables"] == log.since("")["tables"]


def test_rows_without_a_step_or_a_name_are_passed_over(folder):
    (folder / "heads.csv").write_text(
        "step,circuit,role,head,score,retention\nx,a,b,c,1,1\n0,,b,c,1,1\n1,a,b,c,1\n"
    )
    log = Log(folder)
    log.refresh()
    assert all_of(log) == {
        ("heads", "a", "b", "score"): {1: {"c": 1.0}},
        ("heads", "a", "b", "retention"): {1: {"c": None}},
    }


def test_what_lightning_and_the_monitor_write_is_read_as_it_comes(tmp_path):
    logger = CSVLogger(tmp_path, name="logs")
    log = Log(tmp_path / "logs/version_0")
    rows, state, cursor = [], {}, ""
    for step in range(6):
        logger.log_metrics({"b": step, **({"a": 1.0, "c, d": 2.0} if step > 2 else {})}, step)
        logger.save()
        rows += [(step, "ind", "role", head, 0.5, None) for head in ("L0H0", "L0H1")]
        HeadHistory(rows).write_csv(tmp_path / "logs/version_0/heads.csv")
        log.refresh()
        news = log.since(cursor)
        state, cursor = told(state, news), news["cursor"]
    assert {key[1]: list(steps) for key, steps in state.items() if key[0] == "metrics"} == {
        "b": list(range(6)),
        "a": [3, 4, 5],
        "c, d": [3, 4, 5],
    }
    assert state["heads", "ind", "role", "score"][5] == {"L0H0": 0.5, "L0H1": 0.5}
    assert state["heads", "ind", "role", "retention"][0] == {"L0H0": None, "L0H1": None}
