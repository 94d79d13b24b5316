"""Checkpoints side by side: one frozen `Report`, and its renderers."""
