"""What heads do to space: rotate, scale, project, and with whom they share directions."""

from circuitkeep.geometry.heads import HeadGeometry, MapGeometry, head_geometry

__all__ = ["HeadGeometry", "MapGeometry", "head_geometry"]
