"""What the configs train: language modelling, reinforcement, preferences, and the data for them."""

from circuitkeep.tasks.embedded import train_embedded
from circuitkeep.tasks.grpo import GRPO
from circuitkeep.tasks.key_value import KeyValueMap
from circuitkeep.tasks.language_modelling import CausalLM
from circuitkeep.tasks.preference import DPO
from circuitkeep.tasks.reinforce import Reinforce
from circuitkeep.tasks.repetition import RepeatedSegments
from circuitkeep.tasks.text import TextData

__all__ = [
    "DPO",
    "GRPO",
    "CausalLM",
    "KeyValueMap",
    "Reinforce",
    "RepeatedSegments",
    "TextData",
    "train_embedded",
]
