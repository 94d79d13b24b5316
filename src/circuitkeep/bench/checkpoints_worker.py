"""One comparison in a process of its own; started by `circuitkeep.bench.checkpoints`."""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise

from circuitkeep.bench.memory import peak_resident_bytes
from circuitkeep.capture.models import quiet
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.compare.measure import compare

PROBE = {"_target_": "circuitkeep.probes.RepeatedTokens"}


def main() -> None:
    """Compare what the argument names; print what it took as JSON."""
    quiet()
    settings = json.loads(sys.argv[1])
    begun: list[float] = []
    heads = tuple(Head(settings["layer"], index) for index in range(settings["heads"]))
    compare(
        settings["base"],
        {f"checkpoint {n}": path for n, path in enumerate(settings["checkpoints"])},
        [Circuit("induction", (Role("induction", heads),), PROBE, "accuracy", "made up")],
        rows=settings["rows"],
        progress=lambda name: begun.append(time.monotonic()),
    )
    begun.append(time.monotonic())
    # The first is the base's.
    seconds = [end - start for start, end in pairwise(begun[1:])]
    found = {"checkpoints": len(seconds), "peak_bytes": peak_resident_bytes(), "seconds": seconds}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
