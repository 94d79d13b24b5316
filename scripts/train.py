"""The same as ``circuitkeep train``, from a checkout."""

import sys

from circuitkeep.cli.application import run

if __name__ == "__main__":
    run("train", sys.argv[1:])
