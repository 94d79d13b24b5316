"""Shapes and types of every circuitkeep function are checked while the tests run."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported; no test needs a network

import copy
import shutil

import pytest
import torch
from jaxtyping import install_import_hook

from .wandb_reader import read_wandb, wandb_offline  # noqa: F401

# Before anything imports circuitkeep: only modules imported later are checked.
install_import_hook("circuitkeep", "beartype.beartype")

# xdist already runs one process per core.
torch.set_num_threads(1)

VOCAB = 36


def tiny_config(kind, **changes):
    """Two layers of four heads over 36 tokens, in the words of each architecture."""
    import transformers as t

    tokens = {"bos_token_id": 32, "eos_token_id": 33, "pad_token_id": 34}
    if kind in ("gpt2", "gptj"):
        config = t.GPT2Config if kind == "gpt2" else t.GPTJConfig
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
        if kind == "gptj":
            sizes["rotary_dim"] = 4
        return config(vocab_size=VOCAB, **{**sizes, **tokens, **changes})
    config, extra = {
        "opt": (t.OPTConfig, {"ffn_dim": 48, "word_embed_proj_dim": 32}),
        "llama": (t.LlamaConfig, {"num_key_value_heads": 2}),
        "qwen3": (t.Qwen3Config, {"num_key_value_heads": 2, "head_dim": 8}),
        "neox": (t.GPTNeoXConfig, {}),
        "mistral": (t.MistralConfig, {"num_key_value_heads": 2, "sliding_window": 4}),
        "gemma2": (
            t.Gemma2Config,
            {
                "num_key_value_heads": 2,
                "head_dim": 8,
                "sliding_window": 4,
                "attn_logit_softcapping": 0.5,
                "query_pre_attn_scalar": 8,
            },
        ),
        "gpt_oss": (
            t.GptOssConfig,
            {
                "num_key_value_heads": 2,
                "head_dim": 8,
                "num_local_experts": 2,
                "num_experts_per_tok": 1,
            },
        ),
    }[kind]
    return config(
        vocab_size=VOCAB,
        **{
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 24,
            **tokens,
            **extra,
            **changes,
        },
    )


@pytest.fixture(scope="session")
def tiny_model():
    """Makes a small model with random weights, in evaluation mode."""

    def make(kind, seed=0, dtype=torch.float32, **changes):
        from transformers import AutoModelForCausalLM

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(tiny_config(kind, **changes)).to(dtype)
            with torch.no_grad():  # the usual initialisation leaves attention nearly uniform
                for parameter in model.parameters():
                    parameter.add_(0.15 * torch.randn_like(parameter))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def word_tokenizer(tmp_path_factory):
    """A tokenizer of 32 words and four special tokens, loaded from disk."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    words = [*(f"w{number}" for number in range(32)), *special.values()]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=inner, **special).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def as_bridge(word_tokenizer):
    """Wraps a copy of a Hugging Face model in a TransformerBridge."""

    def wrap(model):
        from transformer_lens.model_bridge import TransformerBridge

        model = copy.deepcopy(model)  # the bridge changes what it wraps
        model.config.architectures = [type(model).__name__]
        bridge = TransformerBridge.boot_transformers(
            "local/tiny", hf_model=model, tokenizer=word_tokenizer, device="cpu"
        )
        return bridge.eval()

    return wrap


@pytest.fixture
def tokens():
    """Three rows of twelve tokens."""
    return torch.randint(0, 32, (3, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def wired_model():
    """A Llama whose induction circuit is known by construction: L0H1 and L1H2, nothing else.

    The residual stream has a place for the token, for the token before it, and for what comes
    next. L0H1 attends one position back, by its rotary phases alone, and copies the token there
    to "before". L1H2 attends to where "before" is the current token and copies the token there to
    "next", which is all that the unembedding reads. The other heads attend evenly and write
    nothing, and so do the MLPs.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    vocab, width, sharp = 24, 80, 30.0
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=32,
        rope_parameters={"rope_type": "default", "rope_theta": 1e9},
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    token, before, after = (slice(start, start + vocab) for start in (0, vocab, 2 * vocab))
    constant = 3 * vocab
    eye = torch.eye(vocab)
    # Pairs of head dimensions (i, i + 32) are turned together; those from 8 on hardly turn.
    turning, still = torch.arange(8), slice(8, 8 + vocab)
    speed = 1e9 ** (-2 * turning / 64)
    # What the norm divides by: one entry for the token, one for the constant, one for "before".
    first, second = (2 / width) ** 0.5, (3 / width) ** 0.5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.model.embed_tokens.weight[:, token] = eye
        model.model.embed_tokens.weight[:, constant] = 1
        layers = [layer.self_attn for layer in model.model.layers]

        def weight(layer, kind, head):
            matrix = getattr(layers[layer], f"{kind}_proj").weight
            rows = slice(64 * head, 64 * head + 64)
            return matrix[:, rows] if kind == "o" else matrix[rows]

        weight(0, "q", 1)[turning, constant] = sharp * first * speed.cos()
        weight(0, "q", 1)[turning + 32, constant] = -sharp * first * speed.sin()
        weight(0, "k", 1)[turning, constant] = 8 * first
        weight(0, "v", 1)[still, token] = first * eye
        weight(0, "o", 1)[before, still] = eye
        weight(1, "q", 2)[still, token] = sharp * second * eye
        weight(1, "k", 2)[still, before] = 8 * second * eye
        weight(1, "v", 2)[still, token] = second * eye
        weight(1, "o", 2)[after, still] = eye
        model.lm_head.weight[:, after] = 2 * eye
    return model


@pytest.fixture
def wired_circuit():
    """The heads of `wired_model`."""
    from circuitkeep.circuits import Circuit, Head, Role

    return Circuit(
        "wired",
        (Role("previous-token", (Head(0, 1),)), Role("induction", (Head(1, 2),))),
        {"_target_": "circuitkeep.probes.RepeatedTokens", "length": 14, "segment": [4, 5]},
        "accuracy",
        "wired by hand",
    )


@pytest.fixture(scope="session")
def browser():
    """Chromium; tests that ask for it are skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"this machine has none of {', '.join(names)}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # The sandbox needs rights that containers do not give.
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a page's text, until `ready` is there; nothing may go wrong or be asked for."""
    contexts, wrong = [], []

    def go(text, ready=".js-plotly-plot .main-svg", **settings):
        path = tmp_path / "report.html"
        path.write_text(text, encoding="utf-8")
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append("an alert"))
        page.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:", "blob:")) or wrong.append(request.url)
            ),
        )
        page.goto(path.as_uri())
        page.locator(ready).last.wait_for()
        return page

    yield go
    for context in contexts:
        context.close()
    assert wrong == []
