"""``circuitkeep watch``: follow a running training in the browser."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

from omegaconf import DictConfig

from circuitkeep.cli.mistakes import check_arguments
from circuitkeep.watch.server import Run, Server, is_loopback


def run(config: DictConfig) -> None:
    """Serve the page until Ctrl-C."""
    settings = {
        "run": str(config.run),
        "host": str(config.host),
        **{key: config[key] for key in ("port", "threshold", "silent_s", "open")},
    }
    check_arguments(serve, settings)
    serve(**settings)


def serve(
    run: str,
    host: str = "127.0.0.1",
    port: int | None = None,
    threshold: int | float = 0.9,
    silent_s: int | float = 60,
    open: bool = False,
) -> None:
    """See ``configs/watch.yaml``.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: For settings out of range, or a port that is taken.
        OSError: If there is no such address on this machine.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise FileNotFoundError(f"run: there is no directory {run}; name the run's output folder")
    if not 0 <= (port or 0) <= 65535:
        raise ValueError(f"port must be from 0 to 65535, got {port}; null takes a free one")
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is a share of the base's value, from 0 to 1; got {threshold}")
    if not silent_s > 0:
        raise ValueError(f"silent_s must be positive, got {silent_s}")
    shown = Run(folder, float(silent_s))
    shown.news()  # so that the page need not wait for a long log
    with Server(shown, host, port or 0, float(threshold)) as server:
        if not is_loopback(host):
            print(
                "circuitkeep: warning: everyone who can reach this machine can read the run; "
                "host=127.0.0.1 is for this machine only",
                file=sys.stderr,
            )
        print(f"following {folder} at {server.url} (Ctrl-C ends it)", flush=True)
        if open:
            webbrowser.open(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()
