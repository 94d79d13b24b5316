"""The same as ``circuitkeep demo``, from a checkout."""

import sys

from circuitkeep.cli import main

if __name__ == "__main__":
    main(["demo", *sys.argv[1:]])
