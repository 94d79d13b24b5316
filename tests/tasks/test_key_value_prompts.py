import torch

from circuitkeep.tasks.key_value import key_value_map
from circuitkeep.tasks.key_value_prompts import KeyValuePreferences, KeyValuePrompts


def test_the_answer_is_the_value_of_the_last_key():
    data = KeyValuePrompts(train_rows=30, val_rows=20, pairs=4, map_seed=3)
    for rows in (data.train_rows.columns, data.val_rows.columns):
        tokens = rows["input_ids"]
        assert tokens.shape[1] == 12
        assert (tokens[:, -2] == 1).all()
        assert torch.equal(rows["answer"][:, 0], key_value_map(3)[tokens[:, -1] - 2])
        assert not (tokens[:, 2:-1:3] == tokens[:, -1:]).any(), "no copying from the context"


def test_the_value_is_preferred_to_any_other_token():
    data = KeyValuePreferences(train_rows=3000, val_rows=20, pairs=2, vocab_size=10)
    rows = data.train_rows.columns
    chosen, rejected = rows["chosen_ids"], rows["rejected_ids"]
    assert torch.equal(chosen[:, :-1], rejected[:, :-1])
    assert torch.equal(chosen[:, -1], key_value_map(0, 10)[chosen[:, -2] - 2])
    assert not (chosen[:, -1] == rejected[:, -1]).any()
    assert rejected[:, -1].unique().tolist() == [*range(2, 10)]
    for name in ("chosen", "rejected"):
        labels = rows[f"{name}_labels"]
        assert (labels[:, :-1] == -100).all()
        assert torch.equal(labels[:, -1], rows[f"{name}_ids"][:, -1])
