"""The wired models do what they are wired for, by the heads they are wired with."""

from dataclasses import replace

import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.causal.ablation import ablation_effect, answer_log_probs
from circuitkeep.circuits import Circuit, Role
from circuitkeep.evals.circuit import measure_circuit, retention, score_heads
from circuitkeep.probes.targets import shifted_target

SEEDS = [0, 1, 2]
KINDS = [
    *("induction", "decoys", "induction_at_4", "duplicate_token", "positional", "two_hops"),
    "name_mover",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", SEEDS)
def test_wired_heads_attend_and_others_do_not(build, rows_for, kind, seed):
    wired = build(kind, seed)
    backend = attach(wired.model)
    batch = rows_for(kind, backend)
    if kind == "induction_at_4":
        shifted = shifted_target(batch.targets["induction"], batch.mask, 3)
        batch = replace(batch, targets={**batch.targets, "induction": shifted})
    scores = score_heads(backend, batch, list(wired.heads))
    for role, heads in wired.heads.items():
        mean = scores[role].nanmean(0)
        of_role = torch.zeros_like(mean, dtype=torch.bool)
        for head in heads:
            of_role[head.layer, head.index] = True
        assert mean[of_role].min() > 0.99, role
        # An even head sees much of a window of 4, and of a prompt of 8 words.
        few_keys = role == "local-4" or kind == "name_mover"
        assert mean[~of_role].max() < (0.5 if few_keys else 0.2), role


@pytest.mark.parametrize("kind", ["induction", "decoys", "name_mover"])
@pytest.mark.parametrize("seed", SEEDS)
def test_answers_are_right(build, rows_for, kind, seed):
    backend = attach(build(kind, seed).model)
    log_probs, batch = answer_log_probs(backend, rows_for(kind, backend))
    assert (log_probs.argmax(-1) == batch.answer).float().mean() > 0.99


@pytest.mark.parametrize(("kind", "back"), [("positional", 5), ("two_hops", 6)])
@pytest.mark.parametrize("seed", SEEDS)
def test_what_stood_a_fixed_way_back_is_said(build, rows_for, kind, back, seed):
    model = build(kind, seed).model
    tokens = rows_for(kind, attach(model)).tokens
    said = model(tokens).logits.argmax(-1)
    assert (said[:, back:] == tokens[:, :-back]).float().mean() > 0.99


@pytest.mark.parametrize("seed", SEEDS)
def test_induction_at_another_offset_copies_from_there(build, rows_for, seed):
    model = build("induction_at_4", seed).model
    batch = rows_for("induction_at_4", attach(model))
    said = model(batch.tokens).logits.argmax(-1)
    right = total = 0
    for row, tokens in enumerate(batch.tokens.tolist()):
        for query in range(1, 32):
            if tokens[query] in tokens[1:query]:
                earlier = tokens.index(tokens[query])
                right += int(said[row, query]) == tokens[earlier + 4]
                total += 1
    assert right / total > 0.99


@pytest.mark.parametrize("seed", SEEDS)
def test_tokens_seen_before_are_told_from_new_ones(models, build, rows_for, seed):
    model = build("duplicate_token", seed).model
    tokens = rows_for("duplicate_token", attach(model)).tokens
    said = model(tokens).logits.argmax(-1)[:, 1:].tolist()
    expected = [
        [models.SEEN if token in row[:place] else models.NEW for place, token in enumerate(row)][1:]
        for row in tokens.tolist()
    ]
    assert said == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_decoys_attend_and_do_nothing(build, rows_for, seed):
    wired = build("decoys", seed)
    backend = attach(wired.model)
    batch = rows_for("decoys", backend)
    real = sorted(wired.heads["induction"] - wired.decoys)
    assert ablation_effect(backend, sorted(wired.decoys), batch).abs().max() < 1e-3
    assert ablation_effect(backend, real, batch).mean() > 2


@pytest.mark.parametrize("kind", ["two_hops", "name_mover", "positional"])
def test_the_heads_that_write_matter(build, rows_for, kind):
    wired = build(kind, 0)
    backend = attach(wired.model)
    tokens = rows_for(kind, backend).tokens
    before = wired.model(tokens).logits
    for role, heads in wired.heads.items():
        with backend.ablate(dict.fromkeys(heads, torch.zeros(backend.d_head))):
            moved = (backend.forward(tokens) - before).abs().max()
        # The sink writes nothing; the local head writes where nothing reads.
        assert (moved > 3) == (role not in ("first-token", "local-4")), role


@pytest.mark.parametrize("seed", SEEDS)
def test_a_head_that_attends_and_no_longer_writes(models, build, rows_for, seed):
    wired = build("induction", seed)
    backend = attach(wired.model)
    batch = rows_for("induction", backend)
    roles = tuple(Role(role, tuple(heads)) for role, heads in wired.heads.items())
    probe = {"_target_": "circuitkeep.probes.RepeatedTokens"}
    circuit = Circuit("wired", roles, probe, "accuracy", "wired by hand")
    base = measure_circuit(backend, circuit, batch)
    (head,) = wired.heads["induction"]
    inside = slice(models.D_HEAD * head.index, models.D_HEAD * (head.index + 1))
    wired.model.transformer.h[head.layer].attn.c_proj.weight[inside] = 0
    kept = retention(measure_circuit(backend, circuit, batch), base, circuit)
    assert kept["identity_retention"] == pytest.approx(1, abs=0.01)
    assert abs(kept["causal_retention"]) < 0.05
    assert kept["behaviour_retention"] < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_wirings_differ(build, kind):
    heads = [str(build(kind, seed).heads) for seed in range(5)]
    assert len(set(heads)) > 2
