"""Seeded generators of prompts with labelled structure."""

from circuitkeep.probes.base import NO_VALUE, Effect, Probe, ProbeBatch, ProbeContext, Split
from circuitkeep.probes.build import build_probe, describe, probe_fingerprint
from circuitkeep.probes.key_value_recall import KeyValueRecall
from circuitkeep.probes.line_breaks import LineBreaks
from circuitkeep.probes.mixture import Mixture
from circuitkeep.probes.own_samples import OwnSamples
from circuitkeep.probes.repeated import RepeatedTokens
from circuitkeep.probes.targets import (
    copy_target,
    duplicate_token_target,
    induction_target,
    previous_token_target,
)
from circuitkeep.probes.templates import Templates
from circuitkeep.probes.variables import TEXT_VARIABLES, classes_of, text_variables

__all__ = [
    "NO_VALUE",
    "TEXT_VARIABLES",
    "Effect",
    "KeyValueRecall",
    "LineBreaks",
    "Mixture",
    "OwnSamples",
    "Probe",
    "ProbeBatch",
    "ProbeContext",
    "RepeatedTokens",
    "Split",
    "Templates",
    "build_probe",
    "classes_of",
    "copy_target",
    "describe",
    "duplicate_token_target",
    "induction_target",
    "previous_token_target",
    "probe_fingerprint",
    "text_variables",
]
