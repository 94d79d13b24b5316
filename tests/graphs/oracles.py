"""Models of which every path is known, in double precision, and exact transcoders of them.

Three kinds: attention-only models, hand-wired or random with real norms; models whose MLPs are
linear, so that pairs of features (one for each sign of a neuron) replace them exactly; and the same
with a cross-layer transcoder, where a part of what a layer reads is carried by earlier features.
What is expected of them is computed here by plain loops over heads and positions, and by autograd
through the model itself with its patterns and norms held; nothing of `circuitkeep.graphs` is used.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from circuitkeep.capture import Edits, Sites, attach, probe_mode
from circuitkeep.circuits import Head

VOCAB, WIDTH, HEADS, INNER = 11, 16, 4, 6
KINDS = ["gpt2", "llama", "neox"]


def prompt(seed, length=5):
    """A random prompt of the random models: ``pos``."""
    return torch.randint(0, VOCAB, (length,), generator=torch.Generator().manual_seed(seed))


def wired(kind, seed):
    """The hand-wired model of tests/wired, in double precision, with what is known of it."""
    path = Path(__file__).parents[1] / "wired" / "models.py"
    spec = spec_from_file_location("wired_models_of_graphs", path)
    models = module_from_spec(spec)
    spec.loader.exec_module(models)
    found = getattr(models, kind)(seed)
    found.model.double()
    return found


def attention_only(kind, seed, layers=2):
    """A random model of `kind` whose MLPs write nothing; grouped queries in the Llama."""
    model = random_model(kind, seed, layers)
    for block in blocks(model):
        for name, parameter in block.mlp.named_parameters():
            if name.startswith(("c_proj", "down_proj", "dense_4h_to_h")):
                parameter.zero_()
    return model


def linear(kind, seed, layers=2, reads="stream"):
    """A random model whose MLPs are linear in what the transcoder reads.

    Args:
        kind: ``gpt2``, or ``neox``, whose MLPs stand beside the attention.
        seed: Of the weights.
        layers: How many.
        reads: ``stream``: no norm before the MLPs. ``normalized``: real LayerNorms, which are
            root-mean-square norms here, as nothing writes anything with a mean.
    """
    model = random_model(kind, seed, layers, linear=True)
    for block in blocks(model):
        if reads == "stream":
            setattr(block, mlp_norm(model), nn.Identity())
    if reads == "normalized":
        centre_writes(model)
    return model


@dataclass
class Neurons:
    """The MLPs of a linear model: ``m = (x / size) W_in W_out + b_in W_out + b_out``."""

    W_in: torch.Tensor  # layer d_model neuron
    b_in: torch.Tensor  # layer neuron
    W_out: torch.Tensor  # layer neuron d_model
    b_out: torch.Tensor  # layer d_model


def neurons(model):
    """Read them, with what the norm before them multiplies and adds."""
    found = []
    for block in blocks(model):
        norm, mlp = getattr(block, mlp_norm(model)), block.mlp
        if isinstance(model, GPT2LMHeadModel):
            parts = [mlp.c_fc.weight, mlp.c_fc.bias, mlp.c_proj.weight, mlp.c_proj.bias]
        else:
            first, second = mlp.dense_h_to_4h, mlp.dense_4h_to_h
            parts = [first.weight.T, first.bias, second.weight.T, second.bias]
        if not isinstance(norm, nn.Identity):
            parts[1] = parts[1] + norm.bias @ parts[0]
            parts[0] = norm.weight[:, None] * parts[0]
        found.append(parts)
    return Neurons(*(torch.stack(list(part)) for part in zip(*found, strict=True)))


def exact_transcoder(model, reads="stream"):
    """A transcoder per layer: two features for each neuron, one of them active."""
    known = neurons(model)
    layers, _, inner = known.W_in.shape
    transcoder = empty_transcoder(layers, 2 * inner, reads, cross_layer=False)
    fill(transcoder, known.W_in, known.b_in)
    for layer, decoder in enumerate(transcoder.W_dec):
        decoder.data[:, 0] = signed(known.W_out[layer])
    transcoder.b_dec.data[:] = known.b_out
    return transcoder


def split_model(seed, layers=3, kind="gpt2"):
    """A linear model in whose last four dimensions nothing but MLPs writes."""
    model = linear(kind, seed, layers)
    model.get_input_embeddings().weight[:, -4:] = 0
    if kind == "gpt2":
        model.transformer.wpe.weight[:, -4:] = 0
    for block in blocks(model):
        if kind == "gpt2":
            block.attn.c_proj.weight[:, -4:] = 0
            block.attn.c_proj.bias[-4:] = 0
        else:
            block.attention.dense.weight[-4:] = 0
            block.attention.dense.bias[-4:] = 0
    return model


def split_transcoder(model, own=0.5):
    """An exact cross-layer transcoder of a `split_model`.

    What an MLP makes of the last four dimensions is a sum over the features of earlier layers,
    which alone write there: `own` of it is left to the layer's own features, and the rest written
    to the layer by those.
    """
    known = neurons(model)
    layers, _, inner = known.W_in.shape
    transcoder = empty_transcoder(layers, 2 * inner, "stream", cross_layer=True)
    reading = known.W_in.clone()
    reading[:, -4:] *= own
    fill(transcoder, reading, known.b_in)
    carried = (1 - own) * known.W_in[:, -4:] @ known.W_out  # layer 4 d_model
    bias = known.b_out.clone()
    for layer in range(layers):
        bias[layer] += bias[:layer, -4:].sum(0) @ carried[layer]
    transcoder.b_dec.data[:] = bias
    for first, decoder in enumerate(transcoder.W_dec):
        decoder.data[:, 0] = signed(known.W_out[first])
        for later in range(1, layers - first):
            before = decoder.data[:, :later, -4:].sum(1)
            decoder.data[:, later] = before @ carried[first + later]
    return transcoder


def empty_transcoder(layers, features, reads, cross_layer):
    """One in double precision, of rectified features."""
    from circuitkeep.transcoders.transcoder import CrossLayerTranscoder, TranscoderConfig

    config = TranscoderConfig(
        n_layers=layers,
        d_model=WIDTH,
        n_features=features,
        activation="relu",
        cross_layer=cross_layer,
        reads=reads,
    )
    transcoder = CrossLayerTranscoder(config).double().requires_grad_(False)
    for parameter in transcoder.parameters():
        parameter.zero_()
    return transcoder


def fill(transcoder, W_in, b_in):
    for layer in range(len(W_in)):
        transcoder.W_enc.data[layer] = signed(W_in[layer].T)
        transcoder.b_enc.data[layer] = signed(b_in[layer])


def signed(rows):
    """The rows, then their negatives: a neuron is the difference of its two features."""
    return torch.cat([rows, -rows])


def random_model(kind, seed, layers, linear=False):
    """A model with random weights, biases and gains, whose heads attend sharply here and there."""
    sizes = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": None}
    if kind == "gpt2":
        config = GPT2Config(
            n_embd=WIDTH,
            n_layer=layers,
            n_head=HEADS,
            n_inner=INNER,
            n_positions=12,
            activation_function="linear" if linear else "gelu_new",
            **sizes,
        )
        cls = GPT2LMHeadModel
    else:
        shared = {
            "hidden_size": WIDTH,
            "intermediate_size": INNER,
            "num_hidden_layers": layers,
            "num_attention_heads": HEADS,
            "max_position_embeddings": 12,
            "tie_word_embeddings": False,
            **sizes,
        }
        if kind == "llama":
            config, cls = LlamaConfig(num_key_value_heads=2, **shared), LlamaForCausalLM
        else:
            act = "linear" if linear else "gelu"
            config = GPTNeoXConfig(hidden_act=act, use_parallel_residual=True, **shared)
            cls = GPTNeoXForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = cls(config).double().eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if kind == "llama":
        # Llama's own norms compute in single precision.
        for module in list(model.modules()):
            for name, child in module.named_children():
                if type(child).__name__ == "LlamaRMSNorm":
                    norm = nn.RMSNorm(WIDTH, child.variance_epsilon, dtype=torch.float64)
                    norm.weight.data[:] = child.weight
                    setattr(module, name, norm.requires_grad_(False))
    return model


def centre_writes(model):
    """Let nothing that is written to the stream of a GPT-2 have a mean over its dimensions."""
    assert isinstance(model, GPT2LMHeadModel)
    places = [model.transformer.wte.weight, model.transformer.wpe.weight]
    for block in model.transformer.h:
        block.ln_2.eps = 1e-6  # which the transcoder adds too
        for layer in (block.attn.c_proj, block.mlp.c_proj):
            places += [layer.weight, layer.bias]
    for written in places:
        written.data -= written.data.mean(-1, keepdim=True)


def blocks(model):
    """The layers of a model of one of the three kinds."""
    inner = model.base_model
    return inner.h if isinstance(model, GPT2LMHeadModel) else inner.layers


def mlp_norm(model):
    return "ln_2" if isinstance(model, GPT2LMHeadModel) else "post_attention_layernorm"


def norms(model):
    """The norm before each layer's attention, and the last one."""
    gpt2 = isinstance(model, GPT2LMHeadModel)
    first = [block.ln_1 if gpt2 else block.input_layernorm for block in blocks(model)]
    inner = model.base_model
    names = ("ln_f", "norm", "final_layer_norm")
    return [*first, next(getattr(inner, name) for name in names if hasattr(inner, name))]


def norm_size(norm, x):
    """What a norm divides by, at each position: ``... 1``."""
    if isinstance(norm, nn.LayerNorm):
        return (x.var(-1, correction=0, keepdim=True) + norm.eps).sqrt()
    return (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()


def held_norm(norm, x, size):
    """A norm that divides by `size`."""
    centred = x - x.mean(-1, keepdim=True) if isinstance(norm, nn.LayerNorm) else x
    bias = norm.bias if getattr(norm, "bias", None) is not None else 0
    return centred / size * norm.weight + bias


def value_output(model, layer, head):
    """``W_V`` and ``W_O`` of one head, cut out of the parameters by hand."""
    d = width(model) // model.config.num_attention_heads
    mine = slice(d * head, d * head + d)
    block = blocks(model)[layer]
    if isinstance(model, GPT2LMHeadModel):
        value = block.attn.c_attn.weight[:, 2 * width(model) :][:, mine]
        return value, block.attn.c_proj.weight[mine]
    if isinstance(model, LlamaForCausalLM):
        group = head // (model.config.num_attention_heads // model.config.num_key_value_heads)
        attention = block.self_attn
        value = attention.v_proj.weight[d * group : d * group + d].T
        return value, attention.o_proj.weight[:, mine].T
    attention = block.attention
    value = attention.query_key_value.weight[3 * d * head + 2 * d : 3 * d * head + 3 * d].T
    return value, attention.dense.weight[:, mine].T


def width(model):
    return model.config.hidden_size


class Held:
    """One prompt's patterns and norm sizes, and every path that they leave open.

    Attributes:
        patterns: ``layer head query key``.
        sizes: What each layer's norm before the attention, and the last one, divides by: ``pos 1``.
        embedding: What enters layer 0: ``pos d_model``.
        mlp_in, mlp_out: What each MLP reads, before its norm, and writes: ``layer pos d_model``.
        logits: ``pos vocab``.
    """

    def __init__(self, model, tokens):
        self.model, self.tokens = model, tokens
        self.backend = attach(model)
        layers = range(self.backend.n_layers)
        self.heads = [[Head(y, i) for i in range(self.backend.n_heads)] for y in layers]
        inputs, read, written = {}, {}, {}

        def keep(place, key):
            def hook(_module, args, output):
                place[key] = (args[0] if place is not written else output)[0].detach()

            return hook

        everything = tuple(head for row in self.heads for head in row)
        with ExitStack() as stack:
            for i, norm in enumerate(norms(model)):
                stack.callback(norm.register_forward_hook(keep(inputs, i)).remove)
            for i, block in enumerate(blocks(model)):
                norm = getattr(block, mlp_norm(model))
                stack.callback(norm.register_forward_hook(keep(read, i)).remove)
                stack.callback(block.mlp.register_forward_hook(keep(written, i)).remove)
            sites = Sites(pattern=everything, resid=(-1,), logits=True)
            captured = stack.enter_context(self.backend.capture(sites))
            self.logits = self.backend.forward(tokens[None])[0]
        self.patterns = captured.pattern[0].unflatten(0, (len(layers), -1))
        self.embedding = captured.resids[-1][0]
        self.sizes = [norm_size(norm, inputs[i]) for i, norm in enumerate(norms(model))]
        self.mlp_in, self.mlp_out = (torch.stack([x[i] for i in layers]) for x in (read, written))

    def through(self, vector, layer, head, query, key):
        """What a vector at `key`, read by one head, becomes at `query`."""
        norm = norms(self.model)[layer]
        if isinstance(norm, nn.LayerNorm):
            vector = vector - vector.mean()
        value, output = value_output(self.model, layer, head)
        normed = vector / self.sizes[layer][key] * norm.weight
        return self.patterns[layer, head, query, key] * (normed @ value @ output)

    def paths(self, vector, pos, first, stop, end) -> Iterator:
        """Every way of a vector written at `pos` to `end` through heads of layers first..stop-1.

        Yields:
            The heads with their queries and keys, and what arrives.
        """
        if pos == end:
            yield (), vector
        for layer in range(first, stop):
            for head in self.heads[layer]:
                for query in range(pos, end + 1):
                    moved = self.through(vector, layer, head.index, query, pos)
                    for rest, arrived in self.paths(moved, query, layer + 1, stop, end):
                        yield ((head, query, pos), *rest), arrived

    @property
    def unembedding(self):
        """The last norm's gain (and centring) times the unembedding: ``d_model vocab``."""
        norm = norms(self.model)[-1]
        matrix = norm.weight[:, None] * self.model.get_output_embeddings().weight.T
        return matrix - matrix.mean(0) if isinstance(norm, nn.LayerNorm) else matrix

    def logit_direction(self, token):
        """What the last position's logit, less the mean over the vocabulary, reads: ``d_model``."""
        matrix = self.unembedding
        return (matrix[:, token] - matrix.mean(1)) / self.sizes[-1][-1]

    @contextmanager
    def model_held(self, leaves):
        """The model itself with patterns and norms held, whose MLPs write the given leaves."""
        heads = [head for row in self.heads for head in row]
        fixed = dict(zip(heads, self.patterns.flatten(0, 1), strict=True))

        def norm_hook(size):
            return lambda norm, args, _output: held_norm(norm, args[0], size)

        def mlp_hook(leaf):
            return lambda _module, _args, _output: leaf[None]

        with ExitStack() as stack:
            for norm, size in zip(norms(self.model), self.sizes, strict=True):
                stack.callback(norm.register_forward_hook(norm_hook(size)).remove)
            for block, leaf in zip(blocks(self.model), leaves, strict=True):
                stack.callback(block.mlp.register_forward_hook(mlp_hook(leaf)).remove)
            stack.enter_context(self.backend.edit(Edits(pattern=fixed)))
            stack.enter_context(probe_mode(self.model))
            yield

    def run_held(self, embedding, leaves):
        """What the MLPs read, ``layer pos d_model``, and the logits of such a pass."""
        read = {}

        def keep(i):
            def hook(_module, args, _output):
                read[i] = args[0][0]

            return hook

        with self.model_held(leaves), ExitStack() as stack:
            for i, block in enumerate(blocks(self.model)):
                norm = getattr(block, mlp_norm(self.model))
                stack.callback(norm.register_forward_hook(keep(i)).remove)
            with self.backend.edit(Edits(resid={-1: embedding[None]})):
                logits = self.backend.forward(self.tokens[None])[0]
        return torch.stack([read[i] for i in range(len(leaves))]), logits
