"""Transcoders with weights at random, and a model they fit."""

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.transcoders import CrossLayerTranscoder, TranscoderConfig


@pytest.fixture
def make():
    """A transcoder all of whose parameters are drawn at random."""

    def build(layers=3, width=4, features=6, seed=0, **changes):
        config = TranscoderConfig(layers, width, features, **changes)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            transcoder = CrossLayerTranscoder(config)
            with torch.no_grad():
                for parameter in transcoder.parameters():
                    parameter.copy_(torch.randn_like(parameter) / 2)
                transcoder.threshold.abs_()
                if config.activation in ("relu", "topk"):
                    transcoder.threshold.zero_()
        return transcoder.requires_grad_(False)

    return build


@pytest.fixture(scope="module")
def backend(tiny_model):
    """Of a small Llama: 2 layers of width 32."""
    return attach(tiny_model("llama"))
