import pytest
import torch

from circuitkeep.tasks.key_value import KeyValueMap, key_value_map, key_value_rows


def test_rows_follow_the_map():
    values = key_value_map(map_seed=5)
    rows = key_value_rows(20, seed=1, map_seed=5)
    assert rows["input_ids"].shape == (20, 31)
    for tokens, labels, answers in zip(
        rows["input_ids"], rows["labels"], rows["answers"], strict=True
    ):
        assert tokens[0] == 0
        query, key, value = tokens[1:].view(10, 3).T
        assert (query == 1).all()
        assert len(key.unique()) == 10
        assert torch.equal(value, values[key - 2])
        assert torch.equal(labels != -100, answers)
        assert torch.equal(labels[3::3], value)
        assert answers.sum() == 10


def test_the_map_is_fixed_and_the_rows_are_not():
    a, b = KeyValueMap(30, 10, seed=0), KeyValueMap(30, 10, seed=1)
    assert not torch.equal(a.train_rows.columns["input_ids"], b.train_rows.columns["input_ids"])
    for data in (a, b):
        for rows in (data.train_rows, data.val_rows):
            tokens = rows.columns["input_ids"]
            assert torch.equal(tokens[:, 3::3], key_value_map(0)[tokens[:, 2::3] - 2])


def test_more_pairs_than_keys_are_refused():
    with pytest.raises(ValueError, match="10 distinct keys"):
        key_value_rows(1, 0, vocab_size=10)
