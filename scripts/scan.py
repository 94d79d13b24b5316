"""The same as ``circuitkeep scan``, from a checkout."""

import sys

from circuitkeep.cli.application import run

if __name__ == "__main__":
    run("scan", sys.argv[1:])
