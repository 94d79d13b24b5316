"""Differentiable penalties on drift from the reference, one idea per file."""

from circuitkeep.penalties.base import Activations, Labels, Need, Penalty
from circuitkeep.penalties.behaviour import BehaviourKL
from circuitkeep.penalties.floor import HeadScoreFloor
from circuitkeep.penalties.output import HeadOutputDrift
from circuitkeep.penalties.pattern import PatternDivergence
from circuitkeep.penalties.total import Sum

__all__ = [
    "Activations",
    "BehaviourKL",
    "HeadOutputDrift",
    "HeadScoreFloor",
    "Labels",
    "Need",
    "PatternDivergence",
    "Penalty",
    "Sum",
]
