"""Training-time preservation of known circuits in language models."""

__version__ = "0.1.0"
