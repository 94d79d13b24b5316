"""Logs as Lightning and CircuitMonitor write them, and a server that follows them."""

import csv
import threading

import pytest

from circuitkeep.watch.server import Run, Server

HEADS = ("step", "circuit", "role", "head", "score", "retention")


@pytest.fixture
def folder(tmp_path):
    """Where the run's first log lies."""
    path = tmp_path / "run/logs/version_0"
    path.mkdir(parents=True)
    return path


@pytest.fixture(scope="session")
def write_heads():
    """Appends measurements of some heads to ``heads.csv``: `scores` by head, at each of `steps`."""

    def write(folder, steps, scores, circuit="induction", role="induction"):
        path = folder / "heads.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(HEADS)
            for step in steps:
                for head, score in scores.items():
                    writer.writerow([step, circuit, role, head, score, score])

    return write


@pytest.fixture(scope="session")
def write_metrics():
    """Writes rows of metrics, in a file of its own or behind what is there."""

    def write(folder, rows, mode="w"):
        columns = sorted({key for row in rows for key in row})
        with (folder / "metrics.csv").open(mode, newline="") as file:
            writer = csv.DictWriter(file, columns)
            if mode == "w":
                writer.writeheader()
            writer.writerows(rows)

    return write


@pytest.fixture
def serve():
    """Starts a server of a run's folder; all are stopped in the end."""
    started = []

    def start(run, host="127.0.0.1", port=0, threshold=0.9, silent_s=60.0):
        server = Server(Run(run, silent_s), host, port, threshold)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.shutdown()
        server.server_close()
        thread.join()
