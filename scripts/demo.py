"""The same as ``circuitkeep demo``, from a checkout."""

import sys

from circuitkeep.cli.application import run

if __name__ == "__main__":
    run("demo", sys.argv[1:])
