import pytest
import torch

from circuitkeep.transcoders import rows as rows_module
from circuitkeep.transcoders.rows import own_rows, until_end


def test_a_row_ends_with_its_first_end_after_bos():
    tokens = torch.tensor([[1, 5, 2, 2, 2], [1, 1, 5, 5, 5], [1, 5, 6, 7, 8]])
    assert until_end(tokens, [1, 2]).long().tolist() == [
        [1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1],
    ]


def test_own_rows_begin_with_bos_and_follow_from_the_seed(backend, monkeypatch):
    monkeypatch.setattr(rows_module, "_AT_ONCE", 4)
    told = []
    one = own_rows(backend, None, 6, 8, 0, lambda *of: told.append(of))
    assert one.tokens.shape == one.mask.shape == (6, 8)
    assert (one.tokens[:, 0] == 32).all()
    assert told == [(4, 6), (6, 6)]
    assert torch.equal(own_rows(backend, None, 6, 8, 0).tokens, one.tokens)
    other = own_rows(backend, None, 6, 8, 1).tokens
    # Nor are the second four of one seed the first of another.
    seen = {tuple(row) for row in one.tokens.tolist()}
    assert not seen & {tuple(row) for row in other.tolist()}


def test_rows_longer_than_the_context_are_refused(backend):
    with pytest.raises(ValueError, match="longer than the model's context of 24"):
        own_rows(backend, None, 2, 25, 0)
