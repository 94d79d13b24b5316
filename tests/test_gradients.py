"""Every penalty's gradient, through the real model, is where its documentation says, and right.

The published circuit regularizers detach their cache: a penalty of which nobody checked this may
train nothing at all.
"""

import copy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture import attach, probe_mode
from circuitkeep.circuits import Circuit, Head, Manifold, Role
from circuitkeep.penalties import (
    AttributionDrift,
    BehaviourKL,
    CompositionDrift,
    EffectDrift,
    GeometryDrift,
    HeadOutputDrift,
    HeadScoreFloor,
    HeadWeightDrift,
    OVTransformDrift,
    PatternDivergence,
    Sum,
)
from circuitkeep.probes import RepeatedTokens
from circuitkeep.probing import probe_rows
from circuitkeep.reference import Fingerprint, capture_reference, observe

NOTHING = Fingerprint("", "", "", "", "")
# Both heads of layer 1 read the same key-value head; L1H2 and L1H3 belong to the other one.
GUARDED = Circuit(
    "test",
    (Role("induction", (Head(1, 0), Head(1, 1))), Role("previous-token", (Head(1, 1),))),
    {"_target_": "circuitkeep.probes.RepeatedTokens"},
    "accuracy",
    "made up",
    manifolds=(
        Manifold("place", "position", 1, (1, 11)),
        Manifold("below", "position", 0, (1, 11)),
    ),
)
PROBE = RepeatedTokens(length=12, segment=(3, 4), prefix=(0, 1))
# Which projections of the guarded layer a penalty reaches, by its documentation.
PENALTIES = {
    "pattern-kl": (PatternDivergence(), "qk"),
    "pattern-js": (PatternDivergence("js"), "qk"),
    "pattern-squared": (PatternDivergence("squared"), "qk"),
    "pattern-all": (PatternDivergence(queries="all"), "qk"),
    "output-z": (HeadOutputDrift(), "qkv"),
    "output-z-cosine": (HeadOutputDrift(kind="cosine", queries="all"), "qkv"),
    "output-result": (HeadOutputDrift("result"), "qkvo"),
    "output-result-cosine": (HeadOutputDrift("result", "cosine"), "qkvo"),
    "floor": (HeadScoreFloor(0.0), "qk"),
    "behaviour": (BehaviourKL(), "qkvo"),
    "attribution": (AttributionDrift(), "qkvo"),
    "effect": (EffectDrift(), "qkvo"),
    **{f"geometry-{kind}": (GeometryDrift(kind), "qkvo") for kind in ("shape", "rigid", "place")},
    "sum": (
        Sum({"pattern": PatternDivergence(), "output": HeadOutputDrift(), "kl": BehaviourKL()}),
        "qkvo",
    ),
}


@pytest.fixture(scope="module")
def base(tiny_model):
    return tiny_model("llama", dtype=torch.float64)


@pytest.fixture(scope="module")
def changed(base):
    """The base after some training that hurt."""
    model = copy.deepcopy(base)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.05 * noise)
    return model


@pytest.fixture(scope="module")
def reference(base):
    def make(penalty, backend=None):
        backend = attach(base) if backend is None else backend
        batch = probe_rows(GUARDED, backend, None, "train", 6, 0, PROBE)
        return capture_reference(
            backend, GUARDED, batch, penalty.needs, penalty.all_queries, NOTHING
        )

    return make


def value(penalty, backend, reference):
    rows, before = reference.select(torch.arange(len(reference)), backend.device)
    with probe_mode(backend.model):
        now, _ = observe(backend, rows, GUARDED, penalty.needs)
    return penalty(now, before, rows.labels)


def projections(model):
    """Weights of the guarded layer, and of the layer below."""
    named = {
        name.replace("._original_component", ""): parameter
        for name, parameter in model.named_parameters()
    }
    return [
        {x: named[f"model.layers.{layer}.self_attn.{x}_proj.weight"] for x in "qkvo"}
        for layer in (1, 0)
    ]


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("bridged", [False, True], ids=["hf", "bridge"])
def test_gradients_reach_what_they_should_and_nothing_else(
    name, bridged, base, changed, reference, as_bridge
):
    penalty, reached = PENALTIES[name]
    model = copy.deepcopy(changed)
    was = base
    if bridged:
        model, was = as_bridge(model), as_bridge(base)
    before = reference(penalty, attach(was))
    assert value(penalty, attach(was), before).item() == pytest.approx(0, abs=1e-12)
    loss = value(penalty, attach(model), before)
    assert loss.item() > 1e-6
    loss.backward()
    here, below = projections(model)
    for x in "qkvo":
        touched = here[x].grad is not None and bool(here[x].grad.any())
        assert touched == (x in reached), x
        assert below[x].grad.any(), f"{x} of the layer below, which the guarded heads read"
    # Heads that are not guarded: their own part of the weights stays out of it.
    if name not in ("behaviour", "effect", "sum") and not name.startswith("geometry"):
        assert not here["q"].grad[16:].any()
        assert not here["k"].grad[8:].any()
        if "v" in reached:
            assert not here["v"].grad[8:].any()
        if "o" in reached:
            assert not here["o"].grad[:, 16:].any()


@pytest.mark.parametrize("name", PENALTIES)
def test_both_backends_give_one_gradient(name, base, changed, reference, as_bridge):
    penalty, reached = PENALTIES[name]
    models = [copy.deepcopy(changed), as_bridge(changed)]
    grads = []
    for model in models:
        value(penalty, attach(model), reference(penalty)).backward()
        here, below = projections(model)
        grads.append([here[x].grad for x in reached] + [below[x].grad for x in "qkvo"])
    for one, other in zip(*grads, strict=True):
        # Inside the bridge, parts are computed in single precision.
        assert_close(one, other, atol=1e-7, rtol=1e-3)


@pytest.mark.parametrize(
    ("penalty", "reached"),
    [
        (HeadWeightDrift(), "qkvo"),
        (OVTransformDrift(), "vo"),
        (OVTransformDrift("turned"), "vo"),
    ],
    ids=["weights", "ov-strict", "ov-turned"],
)
@pytest.mark.parametrize("bridged", [False, True], ids=["hf", "bridge"])
def test_weights_reach_the_guarded_heads_and_nothing_else(
    bridged, penalty, reached, base, changed, reference, as_bridge
):
    model, was = copy.deepcopy(changed), base
    if bridged:
        model, was = as_bridge(model), as_bridge(base)
    before = reference(penalty, attach(was))
    assert value(penalty, attach(was), before).item() == pytest.approx(0, abs=1e-14)
    backend = attach(model)
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    loss = value(penalty, backend, before)
    assert loss.item() > 1e-3
    assert not calls, "weights need no pass"
    loss.backward()
    touched = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert len(touched) == len(reached)
    here, _ = projections(model)
    for x, own in {"q": 16, "k": 8, "v": 8}.items():
        if x in reached:
            assert here[x].grad[:own].any(dim=1).all()
            assert not here[x].grad[own:].any()
    assert here["o"].grad[:, :16].any(dim=0).all()
    assert not here["o"].grad[:, 16:].any()


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_composition_reaches_writer_and_reader_and_nothing_else(kind, base, changed):
    circuit = replace(
        GUARDED, roles=(Role("induction", (Head(1, 0),)), Role("previous-token", (Head(0, 1),)))
    )
    penalty, model = CompositionDrift(kind), copy.deepcopy(changed)
    batch = probe_rows(circuit, attach(base), None, "train", 6, 0, PROBE)
    before = capture_reference(attach(base), circuit, batch, penalty.needs, False, NOTHING)
    rows, kept = before.select(torch.arange(2), torch.device("cpu"))
    now, _ = observe(attach(model), rows, circuit, penalty.needs)
    penalty(now, kept, rows.labels).backward()
    here, below = projections(model)
    here, below = (
        {x for x, w in layer.items() if w.grad is not None and w.grad.any()}
        for layer in (here, below)
    )
    assert here == set("vo" if kind == "V" else "qk")
    assert below == set("vo")


def in_double(model):
    """A copy that is float64 throughout: transformers' own norms compute in float32."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if "RMSNorm" in type(child).__name__:
                norm = torch.nn.RMSNorm(32, child.variance_epsilon, dtype=torch.float64)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return model


@pytest.mark.parametrize("name", PENALTIES)
def test_gradients_are_right(name, base, changed, reference):
    penalty, reached = PENALTIES[name]
    model = in_double(changed)
    backend, before = attach(model), reference(penalty, attach(in_double(base)))
    value(penalty, backend, before).backward()
    here, below = projections(model)
    generator = torch.Generator().manual_seed(1)
    step = 1e-6
    weights = [*(here[x] for x in reached), *below.values(), model.model.embed_tokens.weight]
    for weight in weights:
        for _ in range(2):
            direction = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
            values = []
            with torch.no_grad():
                for shift in (step, -2 * step):
                    weight.add_(shift * direction)
                    values.append(value(penalty, backend, before).item())
                weight.add_(step * direction)
            numeric = (values[0] - values[1]) / (2 * step)
            exact = (weight.grad * direction).sum().item()
            assert exact == pytest.approx(numeric, rel=1e-5, abs=1e-8)


def test_above_the_floor_there_is_no_gradient(base, reference):
    penalty = HeadScoreFloor(0.05)
    model = copy.deepcopy(base)
    loss = value(penalty, attach(model), reference(penalty))
    assert loss.item() == 0
    loss.backward()
    assert not any(p.grad is not None and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", ["pattern-kl", "output-result", "floor", "behaviour"])
def test_the_gradient_climbs_back(name, changed, reference):
    """A few steps along it undo most of the damage."""
    penalty, _ = PENALTIES[name]
    model = copy.deepcopy(changed)
    backend, before = attach(model), reference(penalty)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = value(penalty, backend, before)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.3 * losses[0]
