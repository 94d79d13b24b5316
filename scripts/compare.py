"""The same as ``circuitkeep compare``, from a checkout."""

import sys

from circuitkeep.cli import main

if __name__ == "__main__":
    main(["compare", *sys.argv[1:]])
