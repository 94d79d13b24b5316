import pytest
import torch

from circuitkeep.tasks.rewards import (
    NO_TOKEN,
    AnswerMatch,
    Completions,
    PatternMatch,
    WeightedRewards,
    WordShare,
)


def completions(rows, answers=None, tokenizer=None):
    """Rows of tokens, as if sampled; shorter ones are padded with 34."""
    width = max(map(len, rows))
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in rows])
    tokens = torch.tensor([row + [34] * (width - len(row)) for row in rows])
    columns = {} if answers is None else {"answer": torch.tensor(answers)}
    return Completions(tokens, mask, [torch.tensor([32, 1])] * len(rows), columns, tokenizer)


def test_answer_match():
    """33 is EOS: an empty completion is EOS alone."""
    rows = [[5, 6, 33], [5, 6, 7], [5, 33], [33], [6, 5, 33], [5, 9, 33]]
    answers = [[5, 6]] * 5 + [[5, NO_TOKEN]]
    assert AnswerMatch()(completions(rows, answers)).tolist() == [1, 1, 0, 0, 0, 1]


def test_an_answer_longer_than_what_was_sampled():
    assert AnswerMatch()(completions([[5], [6]], [[5, 6], [6, NO_TOKEN]])).tolist() == [0, 1]


def test_padding_is_no_answer():
    assert AnswerMatch()(completions([[5], [5, 34]], [[5, 34]] * 2)).tolist() == [0, 1]


def test_data_without_answers():
    with pytest.raises(ValueError, match="AnswerMatch needs the column 'answer'"):
        AnswerMatch()(completions([[5]]))


def test_text_rewards(word_tokenizer):
    rows = [[1, 2, 1, 33], [2, 3, 12, 13], [33]]
    seen = completions(rows, tokenizer=word_tokenizer)
    assert seen.texts == ["w1 w2 w1", "w2 w3 w12 w13", ""]
    assert seen.prompt_texts == ["w1"] * 3
    assert PatternMatch(r"\bw1\b")(seen).tolist() == [1, 0, 0]
    assert WordShare(r"w[12]")(seen).tolist() == [1, 0.25, 0]


def test_text_without_a_tokenizer():
    with pytest.raises(ValueError, match="a reward reads text, and the model came without"):
        PatternMatch("a")(completions([[5]]))


@pytest.mark.parametrize("reward", [PatternMatch, WordShare])
def test_what_is_no_pattern(reward):
    with pytest.raises(ValueError, match=r"'\(' is no regular expression"):
        reward("(")


def test_weighted_sum():
    rewards = {"length": lambda c: c.mask.sum(1), "one": lambda c: [1.0] * len(c.tokens)}
    total, each = WeightedRewards(rewards, {"one": -0.5})(completions([[5], [5, 6]]))
    assert total.tolist() == [0.5, 1.5]
    assert {name: value.tolist() for name, value in each.items()} == {
        "length": [1, 2],
        "one": [1, 1],
    }


def test_a_reward_that_is_none_is_left_out():
    rewards = {"answer": None, "one": lambda c: [1.0] * len(c.tokens)}
    total, each = WeightedRewards(rewards)(completions([[5]]))
    assert (total.tolist(), list(each)) == ([1], ["one"])


@pytest.mark.parametrize(
    ("rewards", "weights", "message"),
    [
        ({}, None, "there is no reward"),
        ({"answer": None}, None, "there is no reward"),
        ({"a": len}, {"b": 1.0}, "a weight for 'b'; the rewards are a"),
        ({"a": len}, {"a": float("nan")}, "the weight of reward 'a' is nan"),
    ],
)
def test_settings_that_cannot_be(rewards, weights, message):
    with pytest.raises(ValueError, match=message):
        WeightedRewards(rewards, weights)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0], r"'a' gave numbers of shape \(1,\) for 2 completions"),
        ([1.0, float("inf")], "'a' gave inf for completion 1"),
        (torch.tensor([float("nan"), 0]), "'a' gave nan for completion 0"),
    ],
)
def test_rewards_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        WeightedRewards({"a": lambda c: given})(completions([[5], [6]]))
