"""Weights read from a model are those that its forward pass uses."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from circuitkeep.capture import attach, interface
from circuitkeep.capture.affine import read_affine, read_norm
from circuitkeep.capture.hf import HFBackend
from circuitkeep.capture.weights import head_maps, head_turns, head_weights, token_weights
from circuitkeep.circuits import Head

KINDS = ["gpt2", "opt", "llama", "qwen3", "neox", "mistral", "gemma2"]
MORE = {
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2},
}
ROTARY = ["llama", "neox", "mistral", "gemma2", "phi", "phi3", "qwen2"]


@pytest.fixture(autouse=True, scope="module")
def _bridge_import():
    """transformer_lens warns when it is imported; that is not what these tests are about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformer_lens  # noqa: F401


@pytest.fixture
def make(tiny_model):
    def build(kind, **changes):
        if kind in KINDS:
            return tiny_model(kind, **changes)
        import transformers as t

        config = {"phi": t.PhiConfig, "phi3": t.Phi3Config, "qwen2": t.Qwen2Config}[kind]
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
        tokens = {"bos_token_id": 32, "eos_token_id": 33, "pad_token_id": 34}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = t.AutoModelForCausalLM.from_config(
                config(vocab_size=36, num_attention_heads=4, **sizes, **tokens, **MORE[kind])
            )
            for parameter in model.parameters():
                parameter.data.add_(0.15 * torch.randn_like(parameter))
        return model.eval()

    return build


def native(**changes):
    """A TransformerLens model of its own, attention only."""
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    sizes = {"d_model": 32, "d_head": 8, "n_heads": 4, "n_layers": 2, "n_ctx": 24, "d_vocab": 36}
    config = TransformerBridgeConfig(**sizes, attn_only=True, **changes)
    bridge = TransformerBridge.boot_native(config)
    generator = torch.Generator().manual_seed(0)
    for parameter in bridge.parameters():
        parameter.data.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return bridge.eval()


def calls(model, tokens):
    """Per layer, what the attention interface was called with, and what entered the attention."""
    backend, seen, entered = attach(model), [], []
    hooks = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for module in backend._attentions
    ]
    interface.DISCOVERY.append(lambda call, output: seen.append((call, output)) or output)
    try:
        with torch.no_grad(), backend._implementation():
            model(tokens, use_cache=False)
    finally:
        interface.DISCOVERY.pop()
        for hook in hooks:
            hook.remove()
    return list(zip(seen, entered, strict=True))


def applied(x, matrix, bias):
    """Per head, ``x matrix + bias``."""
    out = torch.einsum("bpd,hde->bhpe", x, matrix)
    return out if bias is None else out + bias[:, None]


def layer_bias(bias, layer):
    return None if bias is None else bias[layer]


@pytest.mark.parametrize("kind", [*KINDS, *MORE])
def test_weights_make_what_the_attention_is_given(kind, make, tokens):
    model = make(kind)
    weights = head_weights(model)
    assert weights.W_Q.shape == weights.W_K.shape == weights.W_V.shape == (2, 4, 32, 8)
    assert weights.W_O.shape == (2, 4, 8, 32)
    for layer, ((call, output), x) in enumerate(calls(model, tokens)):
        group = 4 // call.value.shape[1]
        value = applied(x, weights.W_V[layer], layer_bias(weights.b_V, layer))
        assert_close(value, call.value.repeat_interleave(group, 1), atol=1e-5, rtol=1e-5)
        if kind == "qwen3":
            continue  # normalizes queries and keys; see the folded test
        # Nothing is turned at position 0.
        query = applied(x, weights.W_Q[layer], layer_bias(weights.b_Q, layer))[:, :, 0]
        key = applied(x, weights.W_K[layer], layer_bias(weights.b_K, layer))[:, :, 0]
        if kind == "opt":  # which scales queries before the interface, not in it
            query = query * 8**-0.5
        assert_close(query, call.query[:, :, 0], atol=1e-5, rtol=1e-5)
        assert_close(key, call.key.repeat_interleave(group, 1)[:, :, 0], atol=1e-5, rtol=1e-5)
        written = torch.einsum("bphe,hed->bpd", output, weights.W_O[layer])
        bias = 0 if weights.b_O is None else weights.b_O[layer]
        project = next(
            getattr(call.module, name)
            for name in ("o_proj", "c_proj", "out_proj", "dense")
            if hasattr(call.module, name)
        )
        assert_close(written + bias, project(output.flatten(2)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ROTARY)
def test_the_turned_product_is_the_score(kind, make, tokens):
    model = make(kind)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") and ("proj" in name or "query_key_value" in name):
            parameter.data.zero_()
    weights = head_weights(model)
    for layer, ((call, _), x) in enumerate(calls(model, tokens)):
        scores = call.query @ call.key.repeat_interleave(4 // call.key.shape[1], 1).mT
        for offset in (0, 1, 5):
            query, key = (factor[layer] for factor in weights.qk(offset))
            own = torch.einsum("bqd,hde,hef,bkf->bhqk", x, query, key, x)
            expected = scores.diagonal(-offset, dim1=2, dim2=3)
            assert_close(own.diagonal(-offset, dim1=2, dim2=3), expected, atol=1e-4, rtol=1e-4)


def test_without_rotation_the_product_is_the_same_at_every_offset(make):
    weights = head_weights(make("gpt2"))
    assert weights.qk(3)[0] is weights.qk(0)[0]


@pytest.mark.parametrize("kind", [*KINDS, *MORE, "native"])
def test_the_maps_of_heads_are_their_weights_and_biases(kind, make):
    model = native(positional_embedding_type="rotary") if kind == "native" else make(kind)
    backend, weights = attach(model), head_weights(model)
    heads = [Head(1, 3), Head(0, 1)]
    maps = head_maps(backend, heads)
    rotary = kind not in ("gpt2", "opt")
    for place, head in enumerate(heads):
        for name in ("Q", "K", "V"):
            own = getattr(maps, f"W_{name}")[place]
            bias = getattr(weights, f"b_{name}")
            assert_close(own[:-1], getattr(weights, f"W_{name}")[head.layer, head.index])
            if bias is None or (name == "K" and not rotary):
                assert not own[-1].any()
            else:
                assert_close(own[-1], bias[head.layer, head.index])
        assert_close(maps.W_O[place], weights.W_O[head.layer, head.index])


@pytest.mark.parametrize("kind", [*ROTARY, "qwen3", "native"])
def test_turns_are_those_of_the_products(kind, make):
    model = native(positional_embedding_type="rotary") if kind == "native" else make(kind)
    weights, backend = head_weights(model), attach(model)
    turns = head_turns(backend, [Head(1, 2), Head(0, 0)])
    offsets = [0, *(2**n for n in range(20) if 2**n < backend.context_length)]
    assert turns.shape[1] == len(offsets)
    for place, (layer, head) in enumerate([(1, 2), (0, 0)]):
        for turn, offset in zip(turns[place][:6], offsets[:6], strict=True):
            turned = weights.W_Q[layer, head] @ turn
            assert_close(turned, weights.qk(offset)[0][layer, head], atol=1e-5, rtol=1e-5)


def test_without_rotation_there_are_no_turns(make):
    assert head_turns(attach(make("gpt2")), [Head(0, 0)]) is None


def test_weights_in_shards_are_refused(make):
    backend = attach(make("llama"))
    backend.sharded = True
    with pytest.raises(ValueError, match="FSDP holds them in shards; leave the terms"):
        head_maps(backend, [Head(0, 0)])


def test_yarn_without_its_temperature(make):
    rope = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 100.0}
    weights = head_weights(
        make("llama", rope_parameters={**rope, "original_max_position_embeddings": 8})
    )
    assert_close(weights.qk(3)[0].norm(dim=-1), weights.W_Q.norm(dim=-1))


@pytest.mark.parametrize("kind", [*KINDS, *MORE])
def test_folded_norms_leave_only_the_division_out(kind, make, tokens):
    changes = {"final_logit_softcapping": None} if kind == "gemma2" else {}
    model = make(kind, **changes)
    folded, raw = head_weights(model, fold_norm=True), head_weights(model)
    backend = attach(model)
    hidden = model(tokens, output_hidden_states=True).hidden_states
    centred = kind in ("gpt2", "opt", "neox", "phi")
    for layer, ((_, output), x) in enumerate(calls(model, tokens)):
        # What is read is not centred here: the weights see to that.
        deviation = hidden[layer] - (hidden[layer].mean(-1, keepdim=True) if centred else 0)
        entering = hidden[layer] / deviation.square().mean(-1, keepdim=True).sqrt()
        for name in ("Q", "K", "V"):
            matrix = getattr(folded, f"W_{name}")[layer]
            bias = layer_bias(getattr(folded, f"b_{name}"), layer)
            own = applied(entering, matrix, bias)
            matrix = getattr(raw, f"W_{name}")[layer]
            expected = applied(x, matrix, layer_bias(getattr(raw, f"b_{name}"), layer))
            if kind == "qwen3" and name != "V":
                norm = getattr(backend._attentions[layer], f"{name.lower()}_norm")
                own = own / expected.square().mean(-1, keepdim=True).sqrt()
                expected = norm(expected)
            assert_close(own, expected, atol=2e-4, rtol=1e-3)
        if kind == "gemma2":
            written = torch.einsum("bphe,hed->bpd", output, raw.W_O[layer])
            own = torch.einsum("bphe,hed->bpd", output, folded.W_O[layer])
            size = (written.square().mean(-1, keepdim=True)).sqrt()
            norm = model.model.layers[layer].post_attention_layernorm
            assert_close(own / size, norm(written), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_bridges_have_the_same_weights(kind, make, as_bridge):
    model = make(kind)
    for fold in (False, True):
        one, other = (head_weights(m, fold_norm=fold) for m in (model, as_bridge(model)))
        for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
            assert_close(getattr(one, name), getattr(other, name), msg=f"{name} {fold}")
        assert_close(one.qk(3), other.qk(3))
        one, other = (token_weights(m, fold_norm=fold) for m in (model, as_bridge(model)))
        assert_close((one.W_E, one.W_U), (other.W_E, other.W_U))


@pytest.mark.parametrize("kind", [*KINDS, "native"])
def test_a_bridges_weights_make_its_queries(kind, make, as_bridge, tokens):
    bridge = native(normalization_type="LN") if kind == "native" else as_bridge(make(kind))
    weights = head_weights(bridge)
    seen = {}
    names = [f"blocks.1.attn.{x}.hook_{end}" for x in "qkv" for end in ("in", "out")]
    hooks = [(n, lambda value, hook: seen.update({hook.name: value})) for n in names]
    bridge.run_with_hooks(tokens, fwd_hooks=hooks)
    for name in "QKV":
        bias = getattr(weights, f"{'' if name == 'Q' else 'kv_'}b_{name}")
        matrix = weights.W_Q if name == "Q" else getattr(weights, f"kv_W_{name}")
        prefix = f"blocks.1.attn.{name.lower()}.hook_"
        own = applied(seen[prefix + "in"], matrix[1], layer_bias(bias, 1)).transpose(1, 2)
        assert_close(own.flatten(2), seen[prefix + "out"].flatten(2), atol=1e-5, rtol=1e-5)


def test_native_bridges_turn_in_pairs(tokens):
    bridge = native(positional_embedding_type="rotary", rotary_dim=4, normalization_type=None)
    for name, parameter in bridge.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    weights, (_, cache) = head_weights(bridge, fold_norm=True), bridge.run_with_cache(tokens)
    x = cache["blocks.0.hook_in"]
    pattern = cache["blocks.0.attn.hook_pattern"]
    for offset in (1, 4):
        query, key = (factor[0] for factor in weights.qk(offset))
        own = torch.einsum("bqd,hde,hef,bkf->bhqk", x, query, key, x) * 8**-0.5
        at_zero = torch.einsum("bqd,hde,hef,bkf->bhqk", x, *(f[0] for f in weights.qk()), x)
        # Log-odds of the key that far back against the query's own position.
        odds = pattern.log().diagonal(-offset, dim1=2, dim2=3)
        odds = odds - pattern.log().diagonal(0, dim1=2, dim2=3)[..., offset:]
        expected = own.diagonal(-offset, dim1=2, dim2=3)
        expected = expected - (at_zero * 8**-0.5).diagonal(0, dim1=2, dim2=3)[..., offset:]
        assert_close(odds, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_token_weights_make_the_logits(kind, make, tokens):
    changes = {"final_logit_softcapping": None} if kind == "gemma2" else {}
    model = make(kind, **changes)
    weights, folded = token_weights(model), token_weights(model, fold_norm=True)
    seen = {}
    decoder = model.get_decoder()
    norm = next(
        getattr(decoder, name)
        for name in ("norm", "ln_f", "final_layer_norm")
        if hasattr(decoder, name)
    )
    norm.register_forward_pre_hook(lambda _, args: seen.update(before=args[0]))
    norm.register_forward_hook(lambda _, args, output: seen.update(after=output))
    logits = model(tokens).logits
    x = seen["before"]
    if kind in ("gpt2", "opt", "neox"):
        size = x.std(-1, unbiased=False, keepdim=True)
    else:
        size = x.square().mean(-1, keepdim=True).sqrt()
    assert_close(seen["after"] @ weights.W_U, logits, atol=1e-4, rtol=1e-4)
    bias = 0 if folded.b_U is None else folded.b_U
    assert_close(x / size @ folded.W_U + bias, logits, atol=1e-3, rtol=1e-3)
    assert_close(model.get_input_embeddings()(tokens), weights.W_E[tokens])


def test_gradients_reach_the_parameters_and_one_layer_is_a_view(make):
    for kind in KINDS:
        model = make(kind)
        weights = head_weights(model, [1])
        parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
        for value in (weights.W_Q, weights.kv_W_K, weights.kv_W_V, weights.W_O):
            assert value.untyped_storage().data_ptr() in parameters
        folded = head_weights(model, fold_norm=True)
        query, key = folded.qk(2)
        ((query @ key).square().sum() + (folded.W_V @ folded.W_O).square().sum()).backward()
        attentions = attach(model)._attentions
        for module in attentions:
            for name, parameter in module.named_parameters():
                if name.endswith("weight"):
                    assert parameter.grad is not None, (kind, name)
                    assert parameter.grad.isfinite().all()
                    assert parameter.grad.abs().sum() > 0


def test_chosen_layers_keep_their_numbers(make):
    model = make("llama")
    backend = attach(model)
    assert isinstance(backend, HFBackend)
    weights = head_weights(backend, [1])
    assert weights.layers == (1,)
    assert_close(weights.W_V, head_weights(backend).W_V[1:])
    with pytest.raises(ValueError, match=r"layers=\[2\]: choose one or more of 0 to 1"):
        head_weights(backend, [2])


class Lora(nn.Module):
    """What peft makes of a linear layer, as far as it matters here."""

    def __init__(self, base_layer, fan_in_fan_out, bias=False):
        super().__init__()
        self.base_layer, self.fan_in_fan_out = base_layer, fan_in_fan_out
        fan = base_layer.weight.shape if fan_in_fan_out else base_layer.weight.shape[::-1]
        self.lora_A = nn.ModuleDict({"default": nn.Linear(fan[0], 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, fan[1], bias=bias)})
        self.active_adapters, self.merged, self.disable_adapters = ["default"], False, False

    def get_delta_weight(self, adapter):
        delta = 2.0 * self.lora_B[adapter].weight @ self.lora_A[adapter].weight
        return delta.T if self.fan_in_fan_out else delta

    def forward(self, x):
        return self.base_layer(x) + 2.0 * self.lora_B["default"](self.lora_A["default"](x))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_adapters_count(kind, make, tokens):
    model = make(kind)
    raw = head_weights(model)
    attention = (model.transformer.h if kind == "gpt2" else model.model.layers)[1]
    attention = attention.attn if kind == "gpt2" else attention.self_attn
    for name in ("c_attn", "c_proj") if kind == "gpt2" else ("q_proj", "v_proj", "o_proj"):
        setattr(attention, name, Lora(getattr(attention, name), kind == "gpt2"))
    weights = head_weights(model)
    (call, _), x = calls(model, tokens)[1]
    value = applied(x, weights.W_V[1], layer_bias(weights.b_V, 1))
    value_heads = call.value.repeat_interleave(4 // call.value.shape[1], 1)
    assert_close(value, value_heads, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(weights.W_Q[1], raw.W_Q[1])
    assert not torch.allclose(weights.W_O[1], raw.W_O[1])
    weights.W_Q.sum().backward()
    adapter = attention.c_attn if kind == "gpt2" else attention.q_proj
    assert adapter.lora_B["default"].weight.grad.abs().sum() > 0
    adapter.disable_adapters = True
    assert_close(head_weights(model).W_Q, raw.W_Q)


def test_adapters_that_are_more_than_a_sum_are_refused():
    with pytest.raises(ValueError, match=r"weights of Lora: it has a variant of LoRA.*'default'"):
        read_affine(Lora(nn.Linear(4, 4), False, bias=True))
    other = Lora(nn.Linear(4, 4), False)
    del other.lora_B
    with pytest.raises(ValueError, match="an adapter that is not LoRA"):
        read_affine(other)


def test_unknown_layouts_are_refused_by_name(make):
    model = make("llama")
    attention = model.model.layers[0].self_attn
    backend = attach(model)
    whole = attention.q_proj
    attention.q_proj = nn.Linear(32, 64, bias=False)  # gated queries
    with pytest.raises(ValueError, match=r"weights of LlamaAttention: it has q, k, v of \[\(4, 16"):
        head_weights(backend)
    attention.query = whole
    del attention.q_proj
    with pytest.raises(ValueError, match=r"LlamaAttention: it has projections named k_proj, v_pro"):
        head_weights(backend)
    attention.q_proj = nn.Bilinear(2, 2, 2)
    with pytest.raises(ValueError, match="Bilinear: it has a projection that is no plain linear"):
        head_weights(backend)


def test_quantized_weights_are_refused():
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match="quantized"):
        read_affine(layer)


def test_unknown_norms_are_refused(make):
    model = make("llama")
    model.model.layers[0].input_layernorm = nn.Softmax(-1)
    with pytest.raises(ValueError, match="Softmax: it has neither a root-mean-square norm nor a"):
        head_weights(model, fold_norm=True)
    assert head_weights(model).W_Q.shape == (2, 4, 32, 8)
    post = make("opt", do_layer_norm_before=False)
    with pytest.raises(ValueError, match="OPTDecoderLayer: it has its norms in the residual"):
        head_weights(post, fold_norm=True)


def test_norms_without_parameters():
    class Centring(nn.Module):
        def forward(self, x):
            return nn.functional.layer_norm(x, x.shape[-1:])

    assert read_norm(Centring(), 12) == (None, None, True)
    found = read_norm(nn.RMSNorm(12, elementwise_affine=False), 12)
    assert_close(found.scale, torch.ones(12))
    assert read_norm(nn.Identity(), 12) == (None, None, False)


def test_unknown_rotations_are_refused(make, as_bridge, tiny_model):
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 100.0}
    weights = head_weights(make("llama", rope_parameters=rope))
    assert weights.qk()[0].shape == (2, 4, 32, 8)
    with pytest.raises(ValueError, match=r"LlamaAttention turns.*'dynamic'.*only offset=0"):
        weights.qk(1)
    weights = head_weights(as_bridge(tiny_model("gptj")))
    with pytest.raises(ValueError, match="GPTJAttention turns"):
        weights.qk(1)


def test_an_embedding_of_another_width_is_refused(make):
    model = make("llama")
    model.set_input_embeddings(nn.Embedding(36, 16))
    backend = attach(make("llama"))
    backend.model = model
    with pytest.raises(ValueError, match="embeds tokens in 16 dimensions and unembeds from 32"):
        token_weights(backend)


def test_half_precision_is_folded_in_fp32(make):
    model = make("llama")
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert head_weights(half).W_Q.dtype == torch.bfloat16
    folded = head_weights(half, fold_norm=True)
    assert folded.W_Q.dtype == folded.W_O.dtype == torch.float32
    assert_close(folded.W_Q, head_weights(model, fold_norm=True).W_Q, atol=2e-2, rtol=2e-2)
