"""The same guard outside Lightning: a loop of one's own here, Hugging Face and TRL in `.hf`."""

from circuitkeep.integrations.loop import CircuitGuard

__all__ = ["CircuitGuard"]
