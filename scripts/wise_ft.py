"""WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903): a model between a base and what came of it.

    python scripts/wise_ft.py BASE TUNED ALPHA OUTPUT

writes the weights (1 - ALPHA) BASE + ALPHA TUNED to the folder OUTPUT; several ALPHAs, parted by
commas, to OUTPUT/ALPHA. `circuitkeep compare` takes them as checkpoints.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from circuitkeep.capture.fingerprints import fingerprint_tokenizer
from circuitkeep.capture.interpolation import interpolate
from circuitkeep.capture.models import load_model_and_tokenizer, save_model


def main(arguments: list[str] | None = None) -> None:
    """Load both models, and write those in between."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("base", "tuned", "alpha", "output"):
        parser.add_argument(name)
    given = parser.parse_args(arguments)
    try:
        base, one = load_model_and_tokenizer(given.base)
        for alpha in given.alpha.split(","):
            tuned, other = load_model_and_tokenizer(given.tuned)
            if fingerprint_tokenizer(one) != fingerprint_tokenizer(other):
                raise ValueError(f"{given.base} and {given.tuned} have different tokenizers")
            folder = Path(given.output) / (alpha if "," in given.alpha else "")
            save_model(interpolate(base, tuned, float(alpha)), folder, other)
            print(f"alpha={alpha}: {folder}")
    except (ValueError, OSError) as error:
        sys.exit(f"wise_ft: {error}")


if __name__ == "__main__":
    main()
