"""The console command ``circuitkeep``."""

from circuitkeep.cli.application import main

__all__ = ["main"]
