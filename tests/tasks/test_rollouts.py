import pytest
import torch
from torch import nn

from circuitkeep.tasks.rollouts import Sampling, pack, pad_left, until_end

EOS, PAD = 33, 34


def test_rows_are_turned_to_end_together():
    right = torch.tensor([[5, 6, 7], [8, 0, 0]]), torch.tensor([[1, 1, 1], [1, 0, 0]])
    tokens, mask = pad_left(*right)
    assert tokens.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    wide = (nn.functional.pad(part, (4, 0)) for part in (tokens, mask))
    assert pad_left(*wide)[0].tolist() == tokens.tolist()


def test_rows_are_turned_to_begin_together():
    whole = torch.tensor([[5, 6, 7, EOS, PAD], [0, 0, 8, 9, 10]])
    prompts = torch.tensor([[1, 1, 1], [0, 0, 1]])
    kept = torch.tensor([[True, False], [True, True]])
    tokens, mask, sampled = pack(whole, prompts, kept)
    assert tokens[0].tolist() == [5, 6, 7, EOS]
    assert tokens[1, :3].tolist() == [8, 9, 10]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert sampled.tolist() == [[False, False, False, True], [False, True, True, False]]


def test_a_completion_ends_with_its_first_end_token():
    tokens = torch.tensor([[5, EOS, EOS], [EOS, PAD, PAD], [5, 6, 7]])
    expected = [[True, True, False], [True, False, False], [True] * 3]
    assert until_end(tokens, [EOS]).tolist() == expected
    assert until_end(tokens, [7, EOS]).tolist() == expected
    assert until_end(tokens, []).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"top_p": 0.0}, "top_p in"),
        ({"top_k": -1}, "top_k must be 0 or more"),
    ],
)
def test_sampling_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**settings)
