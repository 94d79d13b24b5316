import http.client
import json
import shutil
import socket
import time

import pytest

from circuitkeep.watch.server import Run, Server


@pytest.fixture
def asked(serve, folder):
    """Asks a server of the run; returns status, headers and body."""
    server = serve(folder.parents[1])

    def ask(path, method="GET", **headers):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), body

    return ask


def test_the_page_and_its_numbers(asked, folder, write_metrics):
    status, headers, body = asked("/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert body.startswith(b"<!doctype html>")
    write_metrics(folder, [{"step": 3, "loss": 1.5}])
    status, headers, body = asked("/data")
    assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
    found = json.loads(body)
    assert found["tables"] == [{"key": ["metrics", "loss"], "steps": [3], "columns": {"": [1.5]}}]
    assert (found["log"], found["state"]) == ("logs/version_0", "running")
    assert json.loads(asked(f"/data?log=logs/version_0&since={found['cursor']}")[2])["tables"] == []


def test_no_cache_no_frame_no_other_site(asked):
    _, headers, _ = asked("/data")
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Security-Policy"] == "frame-ancestors 'none'"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "Access-Control-Allow-Origin" not in headers


def test_head_has_no_body(asked):
    status, headers, body = asked("/", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 1_000_000


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_nothing_can_be_written(asked, method):
    status, headers, _ = asked("/data", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


@pytest.mark.parametrize(
    "path",
    [
        "/metrics.csv",
        "/logs/version_0/secret",
        "/../secret",
        "/data/../../secret",
        "/%2e%2e/secret",
        "/data/",
        "//[",
        "/etc/passwd",
        "file:///etc/passwd",
    ],
)
def test_there_is_no_other_path(asked, folder, path):
    (folder / "secret").write_text("secret")
    status, _, body = asked(path)
    assert status in (403, 404)
    assert b"secret" not in body
    assert b"root:" not in body


@pytest.mark.parametrize("log", ["..", "../..", "/etc", "logs/version_0/..", "%00", "x" * 5000])
def test_only_a_log_that_was_found_is_read(asked, folder, write_metrics, log):
    write_metrics(folder.parents[2], [{"step": 9, "outside": 1}])
    write_metrics(folder, [{"step": 3, "loss": 1.5}])
    found = json.loads(asked(f"/data?log={log}")[2])
    assert found["log"] == "logs/version_0"
    assert [table["key"] for table in found["tables"]] == [["metrics", "loss"]]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("localhost:1234", 200),
        ("LOCALHOST", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:80", 200),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:80", 403),
        ("192.168.1.2", 403),
        ("evil@localhost.example", 403),
        ("[", 403),
        ("", 403),
    ],
)
def test_a_name_of_somebody_else_is_refused(asked, host, status):
    assert asked("/data", Host=host)[0] == status


def test_a_server_for_others_answers_to_addresses_and_to_its_name(serve, folder):
    server = serve(folder, host="0.0.0.0")
    assert server.serves("192.168.1.2:80")
    assert not server.serves("evil.example")


def test_the_newest_log_unless_another_is_asked_for(folder, write_metrics):
    write_metrics(folder, [{"step": 0, "old": 1}])
    run = Run(folder.parents[1], 60.0)
    assert run.news()["log"] == "logs/version_0"
    newer = folder.with_name("version_1")
    newer.mkdir()
    write_metrics(newer, [{"step": 0, "new": 1}])
    run = Run(folder.parents[1], 60.0)
    assert run.news()["log"] == "logs/version_1"
    found = run.news("logs/version_0")
    assert found["logs"] == ["logs/version_1", "logs/version_0"]
    assert [table["key"] for table in found["tables"]] == [("metrics", "old")]


def test_a_run_that_has_not_begun_and_one_that_is_deleted(folder, write_metrics, monkeypatch):
    monkeypatch.setattr("circuitkeep.watch.server._LOOK_EVERY_S", 0.0)
    run = Run(folder.parents[1], 60.0)

    def becomes(state):
        end = time.monotonic() + 10
        while run.news()["state"] != state and time.monotonic() < end:
            time.sleep(0.01)
        return run.news()["state"] == state

    assert run.news() == {"logs": [], "state": "empty", "reset": True, "tables": [], "cursor": ""}
    write_metrics(folder, [{"step": 0, "loss": 1}])
    assert becomes("running")
    shutil.rmtree(folder.parents[1])
    assert becomes("empty")


def test_a_cursor_of_one_log_says_nothing_of_another(folder, write_metrics):
    write_metrics(folder, [{"step": 0, "old": 1}])
    newer = folder.with_name("version_1")
    newer.mkdir()
    write_metrics(newer, [{"step": 0, "new": 1}])
    run = Run(folder.parents[1], 60.0)
    found = run.news("logs/version_1", run.news("logs/version_0")["cursor"])
    assert found["reset"]
    assert [table["key"] for table in found["tables"]] == [("metrics", "new")]


def test_a_taken_port_is_named(serve, folder):
    port = serve(folder).server_address[1]
    with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 is taken: choose another"):
        Server(Run(folder, 60.0), "127.0.0.1", port, 0.9)


def test_the_url_of_an_ipv6_address(serve, folder):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    server = serve(folder, host="::1")
    assert server.url == f"http://[::1]:{server.server_address[1]}/"


def test_a_browser_that_goes_away_is_no_news(serve, folder, capsys):
    server = serve(folder)
    with socket.create_connection(server.server_address[:2]) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        connection.recv(10)
        # Closed with unread bytes: the server's next write fails.
    with socket.create_connection(server.server_address[:2]) as connection:
        connection.sendall(b"HEAD / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        assert connection.recv(15).startswith(b"HTTP/1.0 200")
    assert capsys.readouterr().err == ""
