"""Attribution graphs: what contributes to what a model says, and how far that can be trusted."""

from circuitkeep.graphs.graph import Graph, Node

__all__ = ["Graph", "Node"]
