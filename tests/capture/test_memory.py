"""What reading one head keeps in memory."""

import torch

from circuitkeep.bench.gpt2 import build_subject
from circuitkeep.bench.memory import PeakMemory
from circuitkeep.capture import Sites, probe_mode
from circuitkeep.circuits import Head

HEADS, TOKENS, MIB = 16, 1024, 2**20


def test_attention_of_other_heads_is_never_stored():
    """One head's matrix takes 4 MiB here, those of all heads 64."""
    subject = build_subject(1, HEADS, 128, 64, 0, torch.device("cpu"), TOKENS)
    model, backend = subject.model, subject.backend
    tokens = torch.arange(TOKENS)[None] % 64
    queries = torch.arange(TOKENS // 2, TOKENS)[None]

    def peak(*heads):
        with PeakMemory(torch.device("cpu")) as memory, probe_mode(model):
            with backend.capture(Sites(pattern=heads), queries=queries) as captured:
                logits = backend.forward(tokens, torch.tensor([0]))
            loss = captured.pattern.square().sum() if heads else logits.sum()
            loss.backward()
        model.zero_grad(set_to_none=True)
        return memory.bytes / MIB

    plain, one, three = peak(), peak(Head(0, 3)), peak(Head(0, 3), Head(0, 5), Head(0, 7))
    # Half of the queries: 2 MiB a head, and a few times that for softmax and gradients.
    assert one - plain < 16
    assert 4 < three - one < 32
