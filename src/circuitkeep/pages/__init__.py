"""What the HTML pages share: layout, style, how numbers are written, and what may run."""

from circuitkeep.pages.figures import number, percent, signed
from circuitkeep.pages.layout import base_style, render, shared_script

__all__ = ["base_style", "number", "percent", "render", "shared_script", "signed"]
