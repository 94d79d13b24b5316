"""How xdist spreads circuits over its workers."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

from circuitkeep.pytest_plugin import SUFFIX


class CircuitScheduling(LoadScopeScheduling):
    """The checks of a circuit file go to one worker, other tests to whichever is free."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return path if path.endswith(SUFFIX) else nodeid
