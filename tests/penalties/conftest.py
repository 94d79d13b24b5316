"""A small world of guarded heads, whose activations are made from free parameters."""

from dataclasses import dataclass, fields

import pytest
import torch
from torch import Tensor

from circuitkeep.penalties import Activations, Labels

ROWS, HEADS, QUERIES, KEYS, D, VOCAB = 5, 3, 4, 6, 2, 7


@dataclass
class Parameters:
    """What training changes: attention scores, head outputs and logits."""

    scores: Tensor
    output: Tensor
    logits: Tensor

    @classmethod
    def random(cls, seed, dtype=torch.float32):
        generator = torch.Generator().manual_seed(seed)
        shapes = (ROWS, HEADS, QUERIES, KEYS), (ROWS, HEADS, QUERIES, D), (7, VOCAB)
        return cls(
            *(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes)
        )

    def map(self, function):
        return Parameters(*(function(getattr(self, field.name)) for field in fields(self)))

    def towards(self, other, weight):
        """Part of the way to another model."""
        return Parameters(
            *(
                torch.lerp(getattr(self, f.name), getattr(other, f.name), weight)
                for f in fields(self)
            )
        )

    @property
    def tensors(self):
        return self.scores, self.output, self.logits

    def activations(self):
        # Masked keys have attention of exactly 0.
        hidden = torch.zeros(QUERIES, KEYS, dtype=torch.bool)
        hidden[:2, 3:] = True
        pattern = self.scores.masked_fill(hidden, -torch.inf).softmax(-1)
        return Activations(pattern, self.output, self.logits.log_softmax(-1))


@pytest.fixture
def parameters():
    """Makes `Parameters` from a seed."""
    return Parameters.random


@pytest.fixture
def labels():
    """Uneven rows: no target in the last, one for head 2 only in the first, no answer in row 1."""
    query_mask = torch.ones(ROWS, QUERIES, dtype=torch.bool)
    query_mask[1, 3] = query_mask[4, 2:] = False
    target = torch.zeros(ROWS, HEADS, QUERIES, KEYS, dtype=torch.bool)
    target[:4, 0, 1, 2] = target[:4, 0, 2, 0] = True
    target[:4, 1, 2, [1, 4]] = target[2, 1, 3, 5] = True
    target[0, 2, 0, 0] = True
    answer_row = torch.tensor([0, 0, 2, 3, 3, 3, 4])
    return Labels(query_mask, target.any(-1), target, answer_row)
