"""What the configs train: language modelling, and the data for it."""

from circuitkeep.tasks.embedded import train_embedded
from circuitkeep.tasks.key_value import KeyValueMap
from circuitkeep.tasks.language_modelling import CausalLM
from circuitkeep.tasks.repetition import RepeatedSegments
from circuitkeep.tasks.text import TextData

__all__ = ["CausalLM", "KeyValueMap", "RepeatedSegments", "TextData", "train_embedded"]
