"""Differentiable penalties on drift from the reference, one idea per file."""

from circuitkeep.penalties.attribution import AttributionDrift
from circuitkeep.penalties.base import Activations, Labels, Need, Penalty
from circuitkeep.penalties.behaviour import BehaviourKL
from circuitkeep.penalties.composition import CompositionDrift
from circuitkeep.penalties.effect import EffectDrift
from circuitkeep.penalties.floor import HeadScoreFloor
from circuitkeep.penalties.geometry import GeometryDrift
from circuitkeep.penalties.output import HeadOutputDrift
from circuitkeep.penalties.pattern import PatternDivergence
from circuitkeep.penalties.rehearsal import Rehearsal
from circuitkeep.penalties.total import Sum
from circuitkeep.penalties.transform import OVTransformDrift
from circuitkeep.penalties.weights import HeadWeightDrift

__all__ = [
    "Activations",
    "AttributionDrift",
    "BehaviourKL",
    "CompositionDrift",
    "EffectDrift",
    "GeometryDrift",
    "HeadOutputDrift",
    "HeadScoreFloor",
    "HeadWeightDrift",
    "Labels",
    "Need",
    "OVTransformDrift",
    "PatternDivergence",
    "Penalty",
    "Rehearsal",
    "Sum",
]
