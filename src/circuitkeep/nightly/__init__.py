"""Circuits night after night: measured, written down, and held against their history."""
