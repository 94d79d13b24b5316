"""The same as ``circuitkeep compare``, from a checkout."""

import sys

from circuitkeep.cli.application import run

if __name__ == "__main__":
    run("compare", sys.argv[1:])
