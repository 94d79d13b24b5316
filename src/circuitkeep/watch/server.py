"""The dashboard's server: one page and its numbers, to be read only, for this machine."""

from __future__ import annotations

import errno
import json
import socket
import socketserver
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from circuitkeep.watch.log import Log
from circuitkeep.watch.page import render_page
from circuitkeep.watch.runs import find_logs, state_of

_LOOK_EVERY_S = 1.0
"""How often the run's folder is looked through for new logs, unless that takes long."""
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",  # the page has the rest of the policy
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Run:
    """All logs of a run, read as they grow; safe to ask from several threads."""

    def __init__(self, folder: Path, silent_s: float) -> None:
        self.folder = folder
        self.silent_s = silent_s
        self._lock = threading.Lock()
        self._folders: dict[str, Path] = {}
        self._logs: dict[str, Log] = {}
        self._look_at = 0.0

    def news(self, name: str = "", cursor: str = "") -> dict[str, Any]:
        """What is new in a log; in the one last written, if there is none of that name.

        Returns:
            ``logs``, the names of all, and of the one asked for `Log.since` and `state_of`, with
            its name as ``log``. With no log yet, ``state`` is ``empty``.
        """
        with self._lock:
            started = time.monotonic()
            if started >= self._look_at:
                self._folders = find_logs(self.folder)
                ended = time.monotonic()
                # In a folder of a million files, looking must not be all that is done.
                self._look_at = ended + max(_LOOK_EVERY_S, 10 * (ended - started))
            if not self._folders:
                return {"logs": [], "state": "empty", "reset": True, "tables": [], "cursor": ""}
            names = list(self._folders)
            name = name if name in self._folders else names[0]
            folder = self._folders[name]
            log = self._logs.setdefault(name, Log(folder))
            log.refresh()
            return {
                "logs": names,
                "log": name,
                **state_of(folder, self.folder, self.silent_s),
                **log.since(cursor),
            }


class Server(ThreadingHTTPServer):
    """Serves `run` on ``http://host:port``.

    Args:
        run: What is shown.
        host: An address of this machine, or its name.
        port: 0 for one that is free.
        threshold: See `render_page`.

    Raises:
        ValueError: If the port is taken, or may not be used.
        OSError: If there is no such address.
    """

    def __init__(self, run: Run, host: str, port: int, threshold: float) -> None:
        self.run = run
        self.page = render_page(run.folder, threshold).encode()
        self.address_family = socket.AF_INET6 if ":" in host else self.address_family
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                why = "is taken" if error.errno == errno.EADDRINUSE else "needs more rights"
                raise ValueError(
                    f"port {port} of {host} {why}: choose another, or leave port out for a free one"
                ) from error
            raise
        self.host = host

    @property
    def url(self) -> str:
        """Where the page is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.server_address[1]}/"

    def server_bind(self) -> None:
        """Bind, without the look-up of this machine's name that nobody asked for."""
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a browser that has gone."""
        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)

    def serves(self, host: str) -> bool:
        """Whether a request that calls this server `host` is meant for it.

        A page from elsewhere reads what this server says if its own name is made to point here
        (DNS rebinding), so a name must be ``localhost`` or the one the server was given. What is
        bound to this machine's loopback answers to no other address either.
        """
        name = urlsplit(f"//{host}").hostname or ""
        if name in ("localhost", self.host):
            return True
        try:
            return ip_address(name).is_loopback or not is_loopback(self.host)
        except ValueError:
            return False


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach `host`."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _Handler(BaseHTTPRequestHandler):
    server: Server  # type: ignore[assignment]
    timeout = 30
    server_version, sys_version = "circuitkeep", ""

    def do_GET(self) -> None:
        """Answer the two paths that there are."""
        try:
            known = self.server.serves(self.headers.get("Host", ""))
            url = urlsplit(self.path)
        except ValueError:  # from urlsplit: neither is a host, or a path
            known, url = False, urlsplit("")
        if not known:
            self._answer(HTTPStatus.FORBIDDEN, "text/plain", b"this server is for localhost\n")
        elif url.path == "/":
            self._answer(HTTPStatus.OK, "text/html", self.server.page)
        elif url.path == "/data":
            asked = parse_qs(url.query)
            news = self.server.run.news(
                asked.get("log", [""])[0],
                asked.get("since", [""])[0],
            )
            text = json.dumps(news, separators=(",", ":"), allow_nan=False)
            self._answer(HTTPStatus.OK, "application/json", text.encode())
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"there is / and /data\n")

    do_HEAD = do_GET

    def _refuse(self) -> None:
        self._answer(HTTPStatus.METHOD_NOT_ALLOWED, "text/plain", b"to be read only\n")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing: a page asks every second."""
