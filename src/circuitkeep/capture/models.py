"""Loading and saving models and tokenizers, with errors that a person can act on."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence as InTurn
from tokenizers.pre_tokenizers import Split, WhitespaceSplit
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)


def load_model(
    path: str | os.PathLike[str],
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model from a directory or from the Hugging Face hub.

    Args:
        path: A directory with ``config.json`` and weights, or a hub name such as ``gpt2``, of which
            ``gpt2@REVISION`` is a branch, tag or commit.
        dtype: ``float32``, ``bfloat16``, ``float16`` or ``auto``.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2`` ...; transformers' own
            choice if None.
        trust_remote_code: Run code that comes with the model.

    Raises:
        FileNotFoundError: If `path` looks like a directory and is none.
        ValueError: If it is not a causal language model, or cannot be loaded.
    """
    name, revision = _check_path(path)
    dtypes = ("float32", "bfloat16", "float16", "auto")
    if dtype not in dtypes:
        raise ValueError(f"model.dtype={dtype!r}: choose one of {', '.join(dtypes)}")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
    try:
        config = AutoConfig.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cannot load a model from {name!r}: {first_line(error)}") from error
    architectures = config.architectures or []
    if config.is_encoder_decoder or (
        architectures and not any("CausalLM" in a or "LMHead" in a for a in architectures)
    ):
        raise ValueError(
            f"{name!r} is not a causal language model: its architecture is "
            f"{', '.join(architectures) or config.model_type}"
        )
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"cannot load a model from {name!r}: {first_line(error)}") from error
    model, report = loaded
    if report["missing_keys"]:  # transformers draws them at random and goes on
        raise ValueError(f"the weights in {name!r} lack {min(report['missing_keys'])}")
    return model


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """Load the tokenizer of a model's directory or hub name.

    Raises:
        ValueError: If there is none; the message says how to add one.
    """
    name, revision = _check_path(path)
    try:
        return AutoTokenizer.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{name!r} has no tokenizer that can be loaded ({first_line(error)}); save one "
            "there with tokenizer.save_pretrained, or name one by model.tokenizer=PATH"
        ) from error


def load_model_and_tokenizer(
    path: str | os.PathLike[str],
    tokenizer: str | os.PathLike[str] | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, Any]:
    """Load a model and the tokenizer that belongs to it; see `load_model`.

    Args:
        path: Model directory or hub name.
        tokenizer: Where the tokenizer is, if not with the model.
        dtype: See `load_model`.
        attn_implementation: See `load_model`.
        trust_remote_code: See `load_model`.

    Returns:
        The model, and its tokenizer or None for a local model without tokenizer files.
    """
    model = load_model(path, dtype, attn_implementation, trust_remote_code)
    if tokenizer is None and Path(path).expanduser().is_dir() and not has_tokenizer(path):
        return model, None
    return model, load_tokenizer(path if tokenizer is None else tokenizer)


def has_tokenizer(path: str | os.PathLike[str]) -> bool:
    """Whether a local model directory comes with tokenizer files."""
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")
    return any((Path(path) / name).is_file() for name in names)


def quiet() -> None:
    """Silence transformers' own progress bars and notices, as a command-line program wants."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # The hub client tells of every attempt to reach it; what comes of them is in its error.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def save_model(model: PreTrainedModel, path: str | os.PathLike[str], tokenizer: Any = None) -> None:
    """Save a model directory, so that it appears whole or not at all; an old one is replaced.

    Raises:
        OSError: If it cannot be written, or the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    except SafetensorError as error:  # which is no OSError, even where the disk is full
        raise OSError(f"the model was not written to {path}: {first_line(error)}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def build_embedded(seed: int) -> LlamaForCausalLM:
    """The untrained embedded model: a Llama of 2 layers with 4 heads each, over 64 tokens.

    Small enough to grow induction heads in seconds on one core; token 0 is BOS, token 1 marks
    queries in the key-value task, the others have no meaning. The global random state is left
    as it was.
    """
    return _llama(
        seed,
        100.0,
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
    )


def build_attention_only(vocab_size: int, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of 2 layers with 4 heads each, whose MLPs do nothing.

    A Llama has MLPs, so each is one neuron of zeros: it writes zeros and its gradient is zero, and
    so it stays, weight decay or not. All other weights begin very small, as a model that begins so
    tends to learn the rule rather than the examples (Zhang et al. 2024, arXiv:2405.05409). Token 0
    is BOS. The global random state is left as it was.
    """
    model = _llama(
        seed,
        100.0,
        vocab_size=vocab_size,
        hidden_size=32,
        head_dim=16,
        intermediate_size=1,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        initializer_range=1e-3,
        tie_word_embeddings=True,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".mlp." in name:
                parameter.zero_()
    return model


def build_line_breaks(vocab_size: int, context_length: int, seed: int) -> LlamaForCausalLM:
    """An untrained Llama of 4 layers with 6 heads each, large enough to count characters.

    Token 0 is BOS. The global random state is left as it was.
    """
    return _llama(
        seed,
        1000.0,
        vocab_size=vocab_size,
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=context_length,
    )


def _llama(
    seed: int, rope_theta: float, tie_word_embeddings: bool = False, **shape: Any
) -> LlamaForCausalLM:
    """Untrained, with a key for every query head; token 0 is BOS, and no other is special."""
    config = LlamaConfig(
        num_key_value_heads=shape["num_attention_heads"],
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=tie_word_embeddings,
        **shape,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def build_word_tokenizer(words: Sequence[str], bos: str, unknown: str) -> Any:
    """A tokenizer of words parted by blanks; a word's number is its place in `words`.

    Args:
        words: Each once, without blanks; a line break may be one of them.
        bos: The one that begins a text.
        unknown: The one that all other words become.
    """
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token=unknown))
    lines = InTurn([Split("\n", "isolated"), Split(" ", "removed")])
    inner.pre_tokenizer = lines if "\n" in words else WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, unk_token=unknown)


def _check_path(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The directory or hub name, and the revision of the latter."""
    name = os.fspath(path)
    local = Path(name).expanduser()
    if local.is_dir():
        return str(local), "main"
    if local.is_file():
        raise ValueError(f"{name} is a file; name the directory of the model, or a hub name")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise FileNotFoundError(f"there is no model directory at {name}")
    name, _, revision = name.partition("@")
    return name, revision or "main"


def first_line(error: BaseException) -> str:
    """Of an error's message, what fits into a sentence."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
