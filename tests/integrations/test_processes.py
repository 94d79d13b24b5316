"""Two processes on gloo, with DDP around the model."""

import pytest

from .conftest import check_same
from .shared import KINDS

# Two processes that import everything anew.
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_callbacks(kind, in_two_processes, expected):
    """With accumulation, with a search for unused weights, and with weights the task leaves out."""
    for added in in_two_processes:
        check_same(f"two processes, {kind}", added[kind], expected)
