"""What commands and the jobs of a sweep share: where configs are, what is hushed, what is mendable.

Light to import, so that ``--help`` answers at once.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HARMLESS = ("does not have many workers", "Checkpoint directory", "LeafSpec", "'set_vital'")
"""Warnings of other libraries that say nothing to the user of a command."""


def config_directory() -> Path:
    """Where the configs are: in the installed package, or at the root of a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parents[1] / "configs"


@contextmanager
def calm() -> Iterator[None]:
    """Hush what other libraries say that means nothing to the user of a command."""
    from circuitkeep.capture.models import quiet

    quiet()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with warnings.catch_warnings():
        for message in HARMLESS:
            warnings.filterwarnings("ignore", f".*{message}")
        warnings.showwarning = _show_warning
        yield


def mendable() -> tuple[type[Exception], ...]:
    """What is raised for what a user can mend."""
    from hydra.errors import HydraException
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from omegaconf.errors import OmegaConfBaseException

    return ValueError, OSError, HydraException, OmegaConfBaseException, MisconfigurationException


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"circuitkeep: warning: {message}", file=sys.stderr)
