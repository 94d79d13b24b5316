"""The same as ``circuitkeep scan``, from a checkout."""

import sys

from circuitkeep.cli import main

if __name__ == "__main__":
    main(["scan", *sys.argv[1:]])
