import time
from dataclasses import replace

import pytest
import torch

from circuitkeep.probes import ProbeContext, RepeatedTokens
from circuitkeep.probes.repeated import other_integers, unique_integers


def period_of(row, start):
    """The shortest period of a row from `start` on."""
    body = row[start:]
    return next(
        p
        for p in range(1, len(body) + 1)
        if all(body[i] == body[i - p] for i in range(p, len(body)))
    )


def parse(row, longest_prefix):
    """Prefix and segment of a row that begins with BOS."""
    for prefix in range(longest_prefix + 1):
        period = period_of(row, 1 + prefix)
        if 2 * period < len(row) or 1 + prefix + period < len(row):
            return tuple(row[1 : 1 + prefix]), tuple(row[1 + prefix : 1 + prefix + period])
    raise AssertionError(row)


def test_structure(token_context, sound):
    batch = RepeatedTokens().batch(token_context, "train", 50, 0)
    sound(batch)
    assert batch.tokens.shape == (50, 32)
    assert batch.mask.all()
    assert (batch.tokens[:, 0] == 0).all()
    assert not (batch.tokens[:, 1:] == 0).any()
    assert not (batch.tokens == 63).any()
    prefixes, segments = set(), set()
    for row in batch.tokens.tolist():
        prefix, segment = parse(row, 4)
        assert len({*prefix, *segment}) == len(prefix) + len(segment)
        prefixes.add(len(prefix))
        segments.add(len(segment))
    assert prefixes == {0, 1, 2, 3, 4}
    assert min(segments) >= 4
    assert max(segments) <= 15


def test_answers_are_those_an_earlier_occurrence_predicts(token_context):
    batch = RepeatedTokens().batch(token_context, "train", 20, 1)
    expected = [
        (b, q)
        for b, row in enumerate(batch.tokens.tolist())
        for q in range(31)
        if any(row[j] == row[q] and row[j + 1] == row[q + 1] for j in range(q))
    ]
    assert (
        list(zip(batch.answer_row.tolist(), batch.answer_position.tolist(), strict=True))
        == expected
    )


def test_induction_target_by_hand(token_context):
    probe = RepeatedTokens(length=8, segment=(2, 2), prefix=(1, 1))
    target = probe.batch(token_context, "train", 1, 0).targets["induction"][0]
    # BOS p a b a b a b: from every a or b to what followed its earlier occurrences.
    assert {tuple(pair) for pair in target.nonzero().tolist()} == {
        *[(4, 3), (5, 4), (6, 3), (6, 5), (7, 4), (7, 6)]
    }


def test_offset_moves_the_induction_target(token_context):
    near = RepeatedTokens().batch(token_context, "train", 4, 0)
    far = RepeatedTokens(offset=4).batch(token_context, "train", 4, 0)
    assert torch.equal(near.tokens, far.tokens)
    assert not torch.equal(near.targets["induction"], far.targets["induction"])


def test_corrupted_rows_do_not_hold_the_answers(token_context):
    batch = RepeatedTokens().batch(token_context, "held_out", 40, 3)
    corrupted = batch.corrupted
    assert corrupted.tokens.shape == batch.tokens.shape
    assert (corrupted.tokens[:, 0] == 0).all()
    assert not torch.isin(corrupted.tokens, torch.tensor([63])).any()
    for row, answer in zip(batch.answer_row.tolist(), batch.answer.tolist(), strict=True):
        assert answer not in corrupted.tokens[row].tolist()
    for clean, other in zip(batch.tokens.tolist(), corrupted.tokens.tolist(), strict=True):
        prefix, _ = parse(clean, 4)
        assert tuple(other[1 : 1 + len(prefix)]) == prefix


@pytest.mark.parametrize("bos", [0, None])
def test_no_segment_is_in_both_splits(token_context, bos):
    context = ProbeContext(10, 40, bos)
    probe = RepeatedTokens(length=9, segment=(3, 3), prefix=(0, 0))
    seen = {"train": set(), "held_out": set()}
    for split, segments in seen.items():
        for seed in range(20):
            tokens = probe.batch(context, split, 30, seed).tokens[:, 0 if bos is None else 1 :]
            for row in tokens.tolist():
                segments |= {tuple(row[i : i + 3]) for i in range(3)}
    assert not seen["train"] & seen["held_out"]
    # 9 or 10 tokens: nearly all 504 or 720 segments must have been seen for this to mean much.
    assert len(seen["train"] | seen["held_out"]) > 450


def test_split_vocabulary_divides_the_tokens(token_context):
    probe = RepeatedTokens(segment=(4, 10), prefix=(0, 2), vocabulary="split")
    train = set(probe.batch(token_context, "train", 64, 0).tokens[:, 1:].flatten().tolist())
    held_out = set(probe.batch(token_context, "held_out", 64, 0).tokens[:, 1:].flatten().tolist())
    assert not train & held_out
    assert len(train) > 20
    assert len(held_out) > 20


def test_held_out_rows_may_have_other_lengths(token_context):
    probe = RepeatedTokens(length=16, segment=(3, 4), held_out_length=40, held_out_segment=[6, 9])
    assert probe.batch(token_context, "train", 3, 0).tokens.shape[1] == 16
    held_out = probe.batch(token_context, "held_out", 30, 0).tokens
    assert held_out.shape[1] == 40
    assert {len(parse(row, 4)[1]) for row in held_out.tolist()} == {6, 7, 8, 9}


def test_same_arguments_same_rows_and_no_global_generator(token_context, same):
    probe = RepeatedTokens()
    state = torch.random.get_rng_state()
    one = probe.batch(token_context, "train", 8, 5)
    assert torch.equal(state, torch.random.get_rng_state())
    torch.manual_seed(1)
    same(one, probe.batch(token_context, "train", 8, 5))
    assert not torch.equal(one.tokens, probe.batch(token_context, "train", 8, 6).tokens)


def test_model_without_bos(token_context, sound):
    context = replace(token_context, bos_token_id=None)
    batch = RepeatedTokens().batch(context, "train", 8, 0)
    sound(batch)
    assert batch.targets["previous-token"].any(dim=-1)[:, 1:].all()


def test_unique_and_other_integers_are_uniform():
    generator = torch.Generator().manual_seed(0)
    chosen = unique_integers(20_000, 3, 5, generator)
    assert all(len(set(row)) == 3 for row in chosen.tolist())
    for column in range(3):
        counts = chosen[:, column].bincount(minlength=5)
        assert (counts - 4000).abs().max() < 300
    others = other_integers(chosen, 4, 5, generator)
    assert not (others[:, :, None] == chosen[:, None, :]).any()
    assert (others.flatten().bincount(minlength=5) - 16_000).abs().max() < 800


def test_large_vocabularies_are_fast():
    context = ProbeContext(50_257, 1024, 50_256)
    start = time.perf_counter()
    RepeatedTokens(length=256).batch(context, "train", 512, 0)
    assert time.perf_counter() - start < 10  # a second when nothing else runs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segment": [1, 4]}, r"segment must be .* shortest >= 2, got \[1, 4\]"),
        ({"segment": [5, 4]}, "segment must be"),
        ({"prefix": [0]}, "prefix must be"),
        ({"vocabulary": "both"}, "must be 'shared' or 'split', got 'both'"),
        ({"offset": 0}, "offset must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RepeatedTokens(**settings)


def test_rows_that_do_not_fit_are_refused(token_context):
    with pytest.raises(ValueError, match="of 41 tokens is longer than the model's context of 40"):
        RepeatedTokens(length=41).batch(token_context, "train", 2, 0)
    with pytest.raises(ValueError, match="the length must be >= 22"):
        RepeatedTokens(length=21).batch(token_context, "train", 2, 0)
    with pytest.raises(ValueError, match=r"needs 21 tokens .* shared vocabulary has 19"):
        RepeatedTokens().batch(ProbeContext(20, 40, 0), "train", 2, 0)
