"""A model of GPT-2's shape with random weights, plain and as a bridge, and words for its tokens."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from circuitkeep.capture import Backend, attach

CONTEXT = 1024
"""Of GPT-2, in tokens."""


@dataclass(frozen=True)
class Subject:
    """The same weights for every contender.

    Attributes:
        model: As transformers makes it, with its fused attention.
        backend: Attached to `model`.
        bridge: Around a copy of it, because a bridge changes what it wraps.
    """

    model: GPT2LMHeadModel
    backend: Backend
    bridge: TransformerBridge


def build_subject(
    layers: int,
    heads: int,
    d_model: int,
    vocab: int,
    seed: int,
    device: torch.device,
    context: int = CONTEXT,
) -> Subject:
    """Draw the weights and wrap them; the global random state is left as it was.

    Raises:
        ValueError: If `d_model` cannot be divided among the heads.
    """
    with torch.random.fork_rng(devices=[]):
        model = build_model(layers, heads, d_model, vocab, seed, device, context)
        return Subject(model, attach(model), _bridge(model, vocab, device))


def build_model(
    layers: int,
    heads: int,
    d_model: int,
    vocab: int,
    seed: int,
    device: torch.device,
    context: int = CONTEXT,
) -> GPT2LMHeadModel:
    """The model alone; see `build_subject`."""
    config = gpt2_config(layers, heads, d_model, vocab, context)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config).eval()
    model.to(device)  # pyright: ignore[reportArgumentType]
    return model


def gpt2_config(
    layers: int, heads: int, d_model: int, vocab: int, context: int = CONTEXT
) -> GPT2Config:
    """The shape, and how the weights are drawn.

    Raises:
        ValueError: If `d_model` cannot be divided among the heads.
    """
    if d_model % heads:
        raise ValueError(f"{heads} heads cannot share a d_model of {d_model}; choose a multiple")
    return GPT2Config(
        n_layer=layers,
        n_head=heads,
        n_embd=d_model,
        vocab_size=vocab,
        n_positions=context,
        bos_token_id=vocab - 1,
        eos_token_id=vocab - 1,
        # Scores with a standard deviation of 2; the usual initialisation leaves attention nearly
        # uniform, and then any score would agree with any other.
        initializer_range=(2 / d_model) ** 0.5,
        architectures=["GPT2LMHeadModel"],
        # Contenders that train must compute the same loss.
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def _bridge(model: GPT2LMHeadModel, vocab: int, device: torch.device) -> TransformerBridge:
    special = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), _word(vocab - 1))
    words = {_word(token): token for token in range(vocab)}
    inner = Tokenizer(models.WordLevel(words, unk_token=_word(vocab - 1)))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore
    with tempfile.TemporaryDirectory() as folder:
        # From disk, because the bridge loads the tokenizer once more from where it came.
        PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
        bridge = TransformerBridge.boot_transformers(
            "local/random-gpt2",
            hf_model=copy.deepcopy(model),
            tokenizer=AutoTokenizer.from_pretrained(folder),
            device=str(device),
        )
    return bridge.eval()


def texts_of(tokens: Int[Tensor, "batch pos"]) -> list[str]:
    """The rows as text, without the BOS that a tokenizer puts before it."""
    return [" ".join(map(_word, row)) for row in tokens[:, 1:].tolist()]


def _word(token: int) -> str:
    return f"w{token}"
