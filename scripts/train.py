"""The same as ``circuitkeep train``, from a checkout."""

import sys

from circuitkeep.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
