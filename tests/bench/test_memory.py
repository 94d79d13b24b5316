import subprocess
import sys

import pytest

PROGRAM = """
import resource

import numpy as np

from circuitkeep.bench.memory import kept_by_the_process

def faults():
    # Not torch: its memory is aligned, and comes back only with THP_MEM_ALLOC_ENABLE=1.
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(2**24, dtype=np.float32)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = [faults()]
with kept_by_the_process():
    found.append(faults())
print(*found, faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's")
def test_what_is_freed_is_used_again():
    # In a process of its own: what others took and freed has its say in it.
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    before, inside, after = map(int, ran.stdout.split())
    assert before > 100
    assert inside < 10
    assert after > 100, "as it was"
