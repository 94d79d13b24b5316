import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from circuitkeep.watch.server import Server


@pytest.fixture
def stopped(monkeypatch):
    """Ctrl-C, as soon as the page is served; the servers that were."""
    served = []

    def interrupt(server):
        served.append(server)
        raise KeyboardInterrupt

    monkeypatch.setattr(Server, "serve_forever", interrupt)
    return served


@pytest.mark.parametrize("name", ["run", "it's a run", "lr=0.1", "-run", "a,b"])
def test_any_folder_is_followed(command, stopped, tmp_path, name):
    (tmp_path / name).mkdir()
    code, out, err = command("watch", name)
    assert (code, err) == (0, "")
    assert re.match(
        rf"following {re.escape(name)} at http://127.0.0.1:\d+/ \(Ctrl-C ends it\)\n", out
    )
    assert stopped[0].run.folder.name == name
    assert not list((tmp_path / name).iterdir())


def test_its_settings(command, stopped, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("webbrowser.open", seen.append)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    code, out, _ = command(
        "watch", f"run={tmp_path}", f"port={port}", "threshold=0.5", "silent_s=5", "open=true"
    )
    assert code == 0
    assert seen == [f"http://127.0.0.1:{port}/"]
    assert seen[0] in out
    assert '{"threshold":0.5}' in stopped[0].page.decode()
    assert stopped[0].run.silent_s == 5


def test_who_serves_others_is_told(command, stopped, tmp_path):
    code, _, err = command("watch", tmp_path, "host=0.0.0.0")
    assert code == 0
    assert "everyone who can reach this machine can read the run" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "run is not set: add the run's output folder, as in `circuitkeep watch DIRECTORY`"),
        (["gone"], "run: there is no directory gone; name the run's output folder"),
        (["there", "port=x"], "port must be an integer or null, got 'x'"),
        (["there", "port=70000"], "port must be from 0 to 65535, got 70000; null takes a free one"),
        (
            ["there", "threshold=90"],
            "threshold is a share of the base's value, from 0 to 1; got 90",
        ),
        (["there", "silent_s=0"], "silent_s must be positive, got 0"),
        (["there", "ports=1"], "there is no key 'ports'; did you mean 'port'?"),
        (["there", "host=203.0.113.7"], "Cannot assign requested address"),
    ],
)
def test_mistakes(command, tmp_path, arguments, sentence):
    (tmp_path / "there").mkdir()
    code, out, err = command("watch", *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert sentence in err


def test_a_taken_port(command, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, err = command("watch", tmp_path, f"port={port}")
    assert code == 2
    assert err == (
        f"circuitkeep: port {port} of 127.0.0.1 is taken: choose another, or leave port out for a "
        "free one\n"
    )


def test_ctrl_c_ends_it_quietly(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-m", "circuitkeep", "watch", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Who runs the tests in the background ignores Ctrl-C, and what they start would too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            (url,) = re.findall(r"http://\S+/", process.stdout.readline())
            with urllib.request.urlopen(f"{url}data") as answer:
                assert answer.status == 200
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert err == ""
