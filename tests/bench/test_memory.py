import resource
import sys

import numpy as np
import pytest

from circuitkeep.bench.memory import kept_by_the_process


def faults(rounds):
    """Pages that were new in the last of some rounds of taking 64 MiB and giving them back."""
    found = 0
    for _ in range(rounds):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        # Not torch: its memory is aligned, and comes back only with THP_MEM_ALLOC_ENABLE=1.
        np.ones(2**24, dtype=np.float32)
        found = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_is_freed_is_used_again():
    assert faults(3) > 100
    with kept_by_the_process():
        assert faults(3) < 10
    assert faults(3) > 100, "as it was"
