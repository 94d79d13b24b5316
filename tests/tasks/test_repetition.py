import pytest
import torch

from circuitkeep.tasks.repetition import RepeatedSegments, repeated_segments


def test_rows_are_prefix_and_tiled_segment():
    rows = repeated_segments(200, seed=0)
    lengths, prefixes = set(), set()
    for tokens, answers in zip(rows["input_ids"], rows["answers"], strict=True):
        assert tokens[0] == 0
        assert tokens[1:].min() >= 2
        assert tokens.max() < 64
        first = int(answers.nonzero()[0])
        assert answers[first:].all()
        # An answer stands one place into the second copy.
        length = next(
            n for n in range(4, 16) if (tokens[first:] == tokens[first - n : 32 - n]).all()
        )
        start = first - 1 - length
        segment = tokens[start : start + length]
        assert len(segment.unique()) == length
        copies = segment.repeat(8)[: 32 - start]
        assert torch.equal(tokens[start:], copies)
        lengths.add(length)
        prefixes.add(start - 1)
    assert lengths == set(range(4, 16))
    assert prefixes == set(range(5))
    assert torch.equal(rows["labels"], rows["input_ids"])


def test_same_seed_same_rows_and_global_rng_untouched():
    before = torch.get_rng_state()
    a, b, c = (repeated_segments(8, seed=s)["input_ids"] for s in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


def test_validation_rows_are_other_rows():
    data = RepeatedSegments(train_rows=50, val_rows=50, seed=0)
    train = {tuple(row["input_ids"].tolist()) for row in data.train_rows}
    held_out = {tuple(row["input_ids"].tolist()) for row in data.val_rows}
    assert not train & held_out


def test_small_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocabulary of 17, not 16"):
        repeated_segments(1, 0, vocab_size=16)
