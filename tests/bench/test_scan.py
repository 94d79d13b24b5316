"""The suite ``scan``: its contenders do the same work, which is the right one."""

import pytest
import torch
from torch.testing import assert_close
from transformer_lens.head_detector import detect_head

from circuitkeep.bench import scoring
from circuitkeep.bench.ablating import ablating_race
from circuitkeep.bench.gpt2 import build_subject, texts_of
from circuitkeep.bench.race import DisagreementError
from circuitkeep.bench.scan import ScanSuite
from circuitkeep.bench.scoring import scoring_race
from circuitkeep.circuits import Head
from circuitkeep.probes import RepeatedTokens
from circuitkeep.probing import probe_context


def no_progress(name, done, total):
    pass


HEADS = [Head(layer, index) for layer in range(2) for index in range(4)]


@pytest.fixture(scope="module")
def subject():
    return build_subject(2, 4, 32, 64, 0, torch.device("cpu"))


@pytest.fixture
def batch(subject):
    return RepeatedTokens().batch(probe_context(subject.backend), "held_out", 3, 0)


def outcomes(race):
    with torch.no_grad():
        return {c.name: c.outcome(c.run()) for c in race.contenders}


def test_the_weights_are_the_same_and_stay(subject, batch):
    state = torch.random.get_rng_state()
    again = build_subject(2, 4, 32, 64, 0, torch.device("cpu"))
    assert torch.equal(torch.random.get_rng_state(), state)
    logits = subject.model(batch.tokens).logits
    assert torch.equal(again.model(batch.tokens).logits, logits)
    assert_close(subject.bridge(batch.tokens), logits, atol=1e-5, rtol=1e-5)
    other = build_subject(2, 4, 32, 64, 1, torch.device("cpu"))
    assert (other.model(batch.tokens).logits - logits).abs().max() > 0.1
    assert subject.model.config._attn_implementation == "sdpa", "the bridge got a copy"


def test_text_round_trips(subject, batch):
    texts = texts_of(batch.tokens)
    assert torch.equal(subject.bridge.to_tokens(texts), batch.tokens)
    assert torch.equal(subject.bridge.to_tokens(texts[1]), batch.tokens[1:2])


def test_scores_by_hand(subject, batch):
    """Each contender gives what a loop over the eager model's attention does."""
    model = build_subject(2, 4, 32, 64, 0, torch.device("cpu")).model
    model.set_attn_implementation("eager")
    attentions = model(batch.tokens, output_attentions=True).attentions
    expected = torch.zeros(3, 2, 4)
    for row, tokens in enumerate(batch.tokens.tolist()):
        for query in range(32):
            for key in range(query + 1):
                repeats = [key < query and tokens[key] == tokens[query]]
                repeats += [key > 0 and tokens[key - 1] == tokens[query]]
                kinds = [key == query - 1, *repeats]
                for layer, pattern in enumerate(attentions):
                    for kind, counts in enumerate(kinds):
                        if counts:
                            expected[kind, layer] += pattern[row, :, query, key] / 32 / 3
    found = outcomes(scoring_race(subject, batch))
    assert len(found) == 4
    for name, scores in found.items():
        assert_close(scores, expected, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert expected.flatten(1).std(1).min() > 1e-3, "heads differ, or any score would agree"


def test_one_target_differs(subject, batch):
    """The definitions differ in BOS as the token before the first, and in nothing else."""
    for role in scoring.TYPES:
        theirs = scoring._detected(batch, role)
        differ = (theirs != batch.targets[role]).nonzero().tolist()
        first = [[row, 1, 0] for row in range(3)]
        assert differ == (first if role == "previous-token" else [])


def test_the_baseline_is_the_documented_call(subject, batch):
    race = scoring_race(subject, batch)
    by_name = {c.name: c for c in race.contenders}
    found = by_name["detect_head"].run()
    for name, scores in zip(scoring.TYPES.values(), found, strict=True):
        assert_close(scores, detect_head(subject.bridge, texts_of(batch.tokens), name))
    assert by_name["detect_head"].claim == 10


def test_a_wrong_definition_is_found(tiny_suite, monkeypatch):
    wrong = {**scoring.TYPES, "induction": "duplicate_token_head"}
    monkeypatch.setattr(scoring, "TYPES", wrong)
    monkeypatch.setattr(scoring, "_detected", lambda batch, role: batch.targets[role])
    with pytest.raises(DisagreementError, match=r"scoring heads: .* and ours: score_heads differ"):
        tiny_suite().run(no_progress)


def test_ablations_by_hand(subject, batch):
    """Each contender gives what it costs to put the mean in one head's columns."""
    model, d_head = subject.model, 8
    zs = []
    handles = [
        layer.attn.c_proj.register_forward_pre_hook(lambda m, args: zs.append(args[0]))
        for layer in model.transformer.h
    ]

    def loss():
        log_probs = model(batch.tokens).logits.log_softmax(-1)
        rows = [[] for _ in range(3)]
        for row, position, answer in zip(
            batch.answer_row.tolist(), batch.answer_position.tolist(), batch.answer, strict=True
        ):
            rows[row].append(-log_probs[row, position, answer])
        return torch.stack([torch.stack(row).mean() for row in rows])

    with torch.no_grad():
        clean = loss()
        for handle in handles:
            handle.remove()
        race = ablating_race(subject, batch, HEADS)
        found = outcomes(race)
        for number, head in enumerate(HEADS):
            span = slice(head.index * d_head, (head.index + 1) * d_head)
            mean = zs[head.layer][..., span].mean((0, 1))

            def edit(module, args, span=span, mean=mean):
                args[0][..., span] = mean

            project = model.transformer.h[head.layer].attn.c_proj
            handle = project.register_forward_pre_hook(edit)
            expected = loss() - clean
            handle.remove()
            for name, costs in found.items():
                assert_close(costs[:, number], expected, atol=1e-5, rtol=1e-4, msg=name)
    assert expected.abs().max() > 1e-3
    assert race.work == {
        "heads": 8,
        "prompts": 3,
        "tokens_per_prompt": 32,
        "answers": len(batch.answer),
    }


def test_no_hook_stays_behind(subject, batch):
    before = subject.model(batch.tokens).logits
    outcomes(ablating_race(subject, batch, HEADS[:3]))
    assert torch.equal(subject.model(batch.tokens).logits, before)
    assert_close(subject.bridge(batch.tokens), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def test_the_suite(tiny_suite, device):
    found = tiny_suite(heads_per_layer=3, device=device).run(no_progress)
    assert found.machine["device"].startswith(device)
    scoring_result, ablating_result = found.results
    assert scoring_result.race.work["prompts"] == 3
    assert scoring_result.race.work["heads"] == 8
    assert ablating_result.race.work["heads"] == 6
    assert ablating_result.race.work["prompts"] == 2
    assert scoring_result.race.work["tokens_per_prompt"] == 32
    assert ablating_result.race.work["tokens_per_prompt"] == 24
    for result, contenders in ((scoring_result, 4), (ablating_result, 3)):
        assert len(result.seconds) == contenders
        assert all(len(times) == 5 and min(times) > 0 for times in result.seconds.values())
        assert result.largest > 100 * max(result.differences.values())
        assert len(result.race.warm_up) == contenders


def test_the_warm_up_is_smaller(tiny_suite, cpu):
    _, race = tiny_suite().races(cpu)
    for small, whole in zip(race.warm_up, race.contenders, strict=True):
        assert small.name == whole.name
        assert small.run().shape == (2, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": 0}, "bench.prompts must be at least 1, got 0"),
        ({"heads_per_layer": 0}, "bench.heads_per_layer must be at least 1, got 0"),
        ({"heads_per_layer": 5}, "bench.heads_per_layer=5: a layer has 4 heads"),
        ({"repeats": 4}, "bench.repeats=4: a median and its range need at least 5 rounds"),
        ({"length": 1024}, "bench.length must be below 1024, got 1024"),
    ],
)
def test_wrong_settings(tiny_suite, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_suite(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_model": 30}, "4 heads cannot share a d_model of 30"),
        ({"length": 16}, "the length must be >= 22"),
        ({"ablation_length": 1025}, "longer than the model's context of 1024"),
        ({"vocab": 20}, "RepeatedTokens needs 21 tokens"),
    ],
)
def test_shapes_that_do_not_fit(tiny_suite, cpu, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_suite(**changes).races(cpu)


def test_the_default_is_gpt2_small():
    suite = ScanSuite()
    assert (suite.layers, suite.heads, suite.d_model, suite.vocab) == (12, 12, 768, 50_257)
    assert suite.heads_per_layer is None
