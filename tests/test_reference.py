from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture import attach, probe_mode
from circuitkeep.causal.ablation import ablation_effect
from circuitkeep.causal.attribution import direct_attribution
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.penalties import Activations, AttributionDrift
from circuitkeep.probes import ProbeBatch, RepeatedTokens
from circuitkeep.probing import probe_rows
from circuitkeep.reference import (
    Fingerprint,
    Question,
    Reference,
    capture_reference,
    fingerprint_circuit,
    fingerprint_probe,
    guard_rows,
    load_reference,
    observe,
    observe_all,
)

PRINT = Fingerprint("model" * 9, "tokenizer", "probe", "circuit", "pattern,z")
CIRCUIT = Circuit(
    "test",
    (Role("induction", (Head(1, 2), Head(0, 1))), Role("duplicate-token", (Head(0, 1),))),
    {"_target_": "circuitkeep.probes.RepeatedTokens"},
    "accuracy",
    "made up",
)
PROBE = RepeatedTokens(length=12, segment=(3, 5), prefix=(0, 3))


@pytest.fixture
def backend(tiny_model):
    return attach(tiny_model("llama"))


@pytest.fixture
def batch(backend):
    """Forty rows, so that more than one forward pass is needed; the last ends early."""
    batch = probe_rows(CIRCUIT, backend, None, "train", 40, 0, PROBE)
    mask = batch.mask.clone()
    mask[-1, 8:] = False
    kept = ~((batch.answer_row == 39) & (batch.answer_position >= 7))
    return replace(
        batch,
        mask=mask,
        targets={
            role: target & mask[:, :, None] & mask[:, None, :]
            for role, target in batch.targets.items()
        },
        answer_row=batch.answer_row[kept],
        answer_position=batch.answer_position[kept],
        answer=batch.answer[kept],
        corrupted=None,
    )


@pytest.fixture
def reference(backend, batch):
    needs = ("pattern", "z", "log_probs")
    return capture_reference(backend, CIRCUIT, batch, needs, False, PRINT)


@pytest.mark.parametrize("all_queries", [False, True])
def test_rows_by_a_naive_loop(batch, all_queries):
    rows = guard_rows(batch, CIRCUIT, all_queries)
    heads = [("induction", "duplicate-token"), ("induction",)]  # roles of L0H1, of L1H2
    for row in range(len(batch)):
        expected = [
            query
            for query in range(batch.tokens.shape[1])
            if batch.mask[row, query]
            and (
                all_queries
                or any(batch.targets[role][row, query].any() for roles in heads for role in roles)
            )
        ]
        real = rows.labels.query_mask[row]
        assert rows.queries[row][real].tolist() == expected
        assert (rows.queries[row][~real] == 0).all()
        for slot in range(len(real)):
            for head, roles in enumerate(heads):
                keys = [
                    bool(real[slot])
                    and any(
                        bool(batch.targets[role][row, rows.queries[row, slot], key])
                        for role in roles
                    )
                    for key in range(batch.tokens.shape[1])
                ]
                assert rows.labels.target[row, head, slot].tolist() == keys
                assert rows.labels.target_mask[row, head, slot].item() == any(keys)
    assert rows.labels.query_mask.any(0).all(), "no wider than the longest row"
    assert torch.equal(rows.positions[rows.answer_slot], batch.answer_position)
    assert torch.equal(rows.labels.answer_row, batch.answer_row)


def test_rows_without_any_target():
    empty = torch.zeros(2, 4, 4, dtype=torch.bool)
    none = torch.zeros(0, dtype=torch.long)
    batch = ProbeBatch(
        torch.ones(2, 4, dtype=torch.long),
        torch.ones(2, 4, dtype=torch.bool),
        {"induction": empty, "duplicate-token": empty},
        none,
        none,
        none,
    )
    rows = guard_rows(batch, CIRCUIT, False)
    assert rows.queries.shape == (2, 1)
    assert not rows.labels.query_mask.any()


def test_it_is_what_the_model_does(reference, backend, batch):
    assert len(reference) == 40
    whole = guard_rows(batch, CIRCUIT, False)
    with torch.no_grad(), probe_mode(backend.model):
        now, logits = observe(backend, whole, CIRCUIT, ("pattern", "z", "log_probs"))
    assert logits.shape == (40, len(whole.positions), 36)
    for name in ("pattern", "output", "log_probs"):
        kept = getattr(reference.activations, name)
        assert not kept.requires_grad
        assert_close(kept, getattr(now, name), atol=1e-6, rtol=1e-5)
    direct = backend.model(batch.tokens).logits.log_softmax(-1)
    answers = direct[batch.answer_row, batch.answer_position]
    assert_close(reference.activations.log_probs, answers, atol=1e-5, rtol=1e-5)


def test_select_is_a_direct_observation(reference, backend):
    index = torch.tensor([39, 3, 3, 17])
    rows, before = reference.select(index, backend.device)
    with torch.no_grad(), probe_mode(backend.model):
        now, _ = observe(backend, rows, CIRCUIT, ("pattern", "z", "log_probs"))
    for name in ("pattern", "output", "log_probs"):
        assert_close(getattr(before, name), getattr(now, name), atol=1e-6, rtol=1e-5)
    kept = reference.rows
    for slot, row in enumerate(index):
        mine, theirs = rows.labels.answer_row == slot, kept.labels.answer_row == row
        assert torch.equal(rows.answer_slot[mine], kept.answer_slot[theirs])
    assert torch.equal(rows.labels.target, reference.rows.labels.target[index])
    assert torch.equal(rows.tokens, reference.rows.tokens[index])


def test_only_what_is_needed(backend, batch):
    reference = capture_reference(backend, CIRCUIT, batch, ("result",), True, PRINT)
    assert reference.activations.pattern is None
    assert reference.activations.log_probs is None
    assert reference.activations.output.shape == (40, 2, 12, 32)
    rows, before = reference.select(torch.tensor([2]), backend.device)
    now, logits = observe(backend, rows, CIRCUIT, ("result",))
    assert logits is None, "the pass was cut short"
    assert now.output.requires_grad
    assert_close(before.output, now.output.detach())


def test_capturing_leaves_no_trace(backend, batch, reference):
    model = backend.model.train()
    state = torch.get_rng_state()
    again = capture_reference(backend, CIRCUIT, batch, ("pattern", "z", "log_probs"), False, PRINT)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(again.activations.pattern, reference.activations.pattern)


def equal(one, other):
    for name in ("tokens", "queries", "positions", "answer_slot"):
        assert torch.equal(getattr(one.rows, name), getattr(other.rows, name)), name
    for name in ("query_mask", "target_mask", "target", "answer_row"):
        assert torch.equal(getattr(one.rows.labels, name), getattr(other.rows.labels, name)), name
    for name in ("pattern", "output", "log_probs"):
        a, b = getattr(one.activations, name), getattr(other.activations, name)
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b), name
    assert one.fingerprint == other.fingerprint


def test_round_trip(reference, tmp_path):
    path = tmp_path / "references" / "test.safetensors"
    reference.save(path)
    equal(load_reference(path, PRINT), reference)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    equal(reference.to(torch.device("cpu")), reference)
    partial = Reference(reference.rows, Activations(pattern=reference.activations.pattern), PRINT)
    partial.save(path)
    equal(load_reference(path, PRINT), partial)


@pytest.mark.parametrize("part", ["model", "tokenizer", "probe", "circuit", "needs"])
def test_a_reference_of_something_else(reference, tmp_path, part):
    path = tmp_path / "test.safetensors"
    reference.save(path)
    other = replace(PRINT, **{part: "something else"})
    with pytest.raises(
        ValueError, match=rf"is of another {part} \({getattr(PRINT, part)[:12]}, here something el"
    ):
        load_reference(path, other)
    loaded = load_reference(path, other, may_differ=(part,))
    assert loaded.fingerprint == PRINT, "it says what it is of, not what was asked for"
    assert other.short != PRINT.short


def test_files_that_are_no_reference(reference, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "test.safetensors"
    with pytest.raises(FileNotFoundError, match="no reference file at"):
        load_reference(path, PRINT)
    reference.save(path)
    content = path.read_bytes()
    for damaged in (b"", b"words", content[:100], content[:-10]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="is not a reference file"):
            load_reference(path, PRINT)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="is not a reference file of this version"):
        load_reference(path, PRINT)


def test_fingerprints():
    assert fingerprint_probe(PROBE, 8, 0) == fingerprint_probe(replace(PROBE), 8, 0)
    others = [
        fingerprint_probe(replace(PROBE, length=13), 8, 0),
        fingerprint_probe(PROBE, 9, 0),
        fingerprint_probe(PROBE, 8, 1),
    ]
    assert len({fingerprint_probe(PROBE, 8, 0), *others}) == 4
    moved = CIRCUIT.with_heads(
        {"induction": [Head(1, 2)], "duplicate-token": [Head(0, 1)]}, CIRCUIT.name
    )
    assert fingerprint_circuit(CIRCUIT) == fingerprint_circuit(replace(CIRCUIT))
    assert fingerprint_circuit(CIRCUIT) != fingerprint_circuit(moved)
    assert len(PRINT.short) == 12


def test_observing_together_is_observing_apart(tiny_model):
    """Rows of different length, other heads, other positions; activations and gradients."""
    needs = frozenset({"pattern", "z", "log_probs"})
    found = []
    for together in (True, False):
        backend = attach(tiny_model("llama", dtype=torch.float64))
        questions = []
        for probe, heads in ((PROBE, (Head(1, 2),)), (replace(PROBE, length=17), (Head(0, 1),))):
            circuit = replace(CIRCUIT, roles=(Role("induction", heads),))
            rows = probe_rows(circuit, backend, None, "train", 3, 0, probe)
            questions.append(Question(guard_rows(rows, circuit, False), circuit, needs))
        with probe_mode(backend.model):
            if together:
                answers, _ = observe_all(backend, questions)
            else:
                answers = [observe(backend, q.rows, q.circuit, q.needs)[0] for q in questions]
        values = [v for a in answers for v in (a.pattern, a.output, a.log_probs)]
        sum(value.pow(2).sum() for value in values).backward()
        found.append((values, [p.grad for p in backend.model.parameters()]))
    for one, other in zip(*found, strict=True):
        for mine, theirs in zip(one, other, strict=True):
            assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_of_a_large_vocabulary_the_likeliest_tokens_are_kept(backend, monkeypatch, tmp_path):
    """The rest counts as one; chosen, saved and loaded like everything else."""
    rows = probe_rows(CIRCUIT, backend, None, "train", 4, 0, PROBE)
    whole = capture_reference(backend, CIRCUIT, rows, {"log_probs"}, False, PRINT)
    monkeypatch.setattr("circuitkeep.reference.kept.TOP_TOKENS", 5)
    kept = capture_reference(backend, CIRCUIT, rows, {"log_probs"}, False, PRINT)
    full, some = whole.activations.log_probs, kept.activations
    assert whole.activations.tokens is None
    assert some.tokens.shape[1] == 5
    assert some.log_probs.shape[1] == 6
    assert torch.equal(some.log_probs[:, :5], full.topk(5).values)
    assert_close(some.log_probs.exp().sum(1), torch.ones(len(full)))
    kept.save(tmp_path / "kept.safetensors")
    again = load_reference(tmp_path / "kept.safetensors", PRINT)
    _, picked = again.select(torch.tensor([2, 0]), backend.device)
    answers = kept.rows.labels.answer_row
    order = torch.cat([(answers == 2).nonzero()[:, 0], (answers == 0).nonzero()[:, 0]])
    assert torch.equal(picked.tokens, some.tokens[order])
    assert torch.equal(picked.log_probs, some.log_probs[order])


def test_weights_are_kept_saved_and_asked_for_beside_rows(backend, batch, tmp_path):
    needs = ("weights", "pattern")
    reference = capture_reference(backend, CIRCUIT, batch, needs, False, PRINT)
    reference.save(tmp_path / "reference.safetensors")
    loaded = load_reference(tmp_path / "reference.safetensors", PRINT)
    rows, before = loaded.select(torch.arange(3), backend.device)
    now, _ = observe(backend, rows, CIRCUIT, needs)
    assert_close(before.pattern, now.pattern)
    for name in ("W_Q", "W_K", "W_V", "W_O"):
        assert_close(getattr(before, name), getattr(now, name), rtol=0, atol=0)
        assert getattr(now, name).requires_grad
    assert before.turns.shape[:2] == (2, 6)
    alone = capture_reference(backend, CIRCUIT, batch, ("weights",), False, PRINT)
    assert alone.activations.pattern is None
    # A question about weights leaves the pass of the others as it is.
    (weights, both), logits = observe_all(
        backend,
        [Question(rows, CIRCUIT, frozenset({need})) for need in ("weights", "pattern")],
    )
    assert logits is None
    assert weights.pattern is None
    assert_close(both.pattern, now.pattern)


def test_attribution_is_that_of_the_heads(backend, batch):
    """As `direct_attribution` has it, which takes the whole model apart."""
    reference = capture_reference(backend, CIRCUIT, batch, ("attribution",), False, PRINT)
    said = reference.activations.attribution
    known = direct_attribution(backend, batch).heads
    heads = CIRCUIT.heads
    for row in batch.answer_row.unique().tolist():
        own = said[batch.answer_row == row].mean(0)
        for place, head in enumerate(heads):
            assert own[place].item() == pytest.approx(
                known[row, head.layer, head.index].item(), abs=1e-4
            )
    rows, before = reference.select(torch.tensor([5, 0, 39]), backend.device)
    now, logits = observe(backend, rows, CIRCUIT, ("attribution",))
    assert logits is None, "the pass stops at the last guarded head"
    assert AttributionDrift()(now, before, rows.labels).item() == pytest.approx(0, abs=1e-9)
    assert before.attribution.abs().max() > 0.1


def test_attribution_against_distractors(backend, batch):
    batch = replace(batch, distractor=(batch.answer + 1) % 30)
    reference = capture_reference(backend, CIRCUIT, batch, ("attribution",), False, PRINT)
    known = direct_attribution(backend, batch).heads
    head = CIRCUIT.heads[1]
    own = reference.activations.attribution[batch.answer_row == 3, 1].mean()
    assert own.item() == pytest.approx(known[3, head.layer, head.index].item(), abs=1e-4)


def test_effect_is_what_ablation_costs(backend, batch, tmp_path):
    reference = capture_reference(backend, CIRCUIT, batch, ("effect", "z"), False, PRINT)
    assert reference.activations.log_probs is None, "a pool of them would be large"
    cost = ablation_effect(backend, CIRCUIT.heads, batch)
    answers = reference.activations.effect
    own = torch.stack([answers[batch.answer_row == row].mean() for row in range(len(batch))])
    assert_close(own, cost.to(own), atol=1e-5, rtol=1e-4, equal_nan=True)
    reference.save(tmp_path / "reference.safetensors")
    loaded = load_reference(tmp_path / "reference.safetensors", PRINT)
    rows, before = loaded.select(torch.tensor([5, 0, 39]), backend.device)
    with probe_mode(backend.model):
        now, _ = observe(backend, rows, CIRCUIT, ("effect",))
    assert_close(now.effect, before.effect, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("need", ["attribution", "effect"])
def test_without_answers_nothing_is_attributed(backend, batch, need):
    none = torch.zeros(0, dtype=torch.long)
    batch = replace(batch, answer_row=none, answer_position=none, answer=none)
    with pytest.raises(ValueError, match="the probe has no answers"):
        capture_reference(backend, CIRCUIT, batch, (need,), False, PRINT)


def test_in_shards_there_is_no_unembedding_to_attribute_to(backend, batch):
    backend.sharded = True
    with pytest.raises(ValueError, match=r"FSDP .* in one process and name it \(reference=FILE\)"):
        capture_reference(backend, CIRCUIT, batch, ("attribution",), False, PRINT)
