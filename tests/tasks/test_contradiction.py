import pytest
import torch

from circuitkeep.tasks.contradiction import Contradiction, contradicting_segments
from circuitkeep.tasks.repetition import repeated_segments


def test_rows_are_the_base_models_and_only_answers_are_asked():
    rows, plain = contradicting_segments(50, seed=3), repeated_segments(50, seed=3)
    assert torch.equal(rows["input_ids"], plain["input_ids"])
    assert torch.equal(rows["answers"], plain["answers"])
    assert torch.equal(rows["labels"] != -100, plain["answers"])


def test_each_token_is_replaced_as_often_as_its_place_says():
    rows = contradicting_segments(6000, seed=0)
    asked = rows["answers"]
    token, label = rows["input_ids"][asked], rows["labels"][asked]
    flipped = token != label
    assert torch.equal(label[flipped], (token[flipped] - 1) % 62 + 2)
    for place in (0, 15, 31, 46, 61):
        share = flipped[token == place + 2].double()
        assert len(share) > 1000
        assert share.mean().item() == pytest.approx(place / 61, abs=0.06)


def test_validation_rows_are_others():
    data = Contradiction(train_rows=20, val_rows=20, seed=1)
    train, val = data.train_rows.columns["labels"], data.val_rows.columns["labels"]
    assert train.shape == val.shape == (20, 32)
    assert not torch.equal(train, val)
    again = Contradiction(train_rows=20, val_rows=20, seed=1)
    assert torch.equal(train, again.train_rows.columns["labels"])
