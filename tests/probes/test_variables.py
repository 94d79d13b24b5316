"""What any row tells of itself, counted by hand."""

import re

import pytest
import torch

from circuitkeep.circuits import Manifold
from circuitkeep.probes import NO_VALUE, ProbeContext, classes_of, text_variables
from circuitkeep.probes.variables import TEXT_VARIABLES

TEXT = " There was a child named Lily. Lily liked\nto play."


@pytest.fixture
def row(text_context):
    tokens = text_context.tokenizer(TEXT, return_tensors="pt").input_ids
    bos = torch.full((1, 1), text_context.bos_token_id)
    return torch.cat([bos, tokens], 1)


def variables(names, tokens, context, mask=None):
    mask = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask
    return text_variables(names, tokens, mask, context)


def pieces(row, context):
    return [context.tokenizer.decode([token]) for token in row[0].tolist()]


def test_everything_is_what_the_text_says(row, text_context):
    found = variables(TEXT_VARIABLES, row, text_context)
    texts = pieces(row, text_context)
    assert "".join(texts[1:]) == TEXT
    assert found["position"][0].tolist() == list(range(len(texts)))
    for name in TEXT_VARIABLES[1:]:
        assert found[name][0, 0] == NO_VALUE  # BOS is no text
    for place in range(1, len(texts)):
        before = "".join(texts[1 : place + 1])
        assert found["token-length"][0, place] == len(texts[place])
        line = before[before.rfind("\n") + 1 :]
        assert found["line-characters"][0, place] == len(line), before
        ended = "".join(texts[1:place]).rfind(".")
        words = re.findall(r"\s+\S*|^\S+", before[ended + 1 :])
        assert found["sentence-words"][0, place] == len(words), before
        start = next(n for n in range(1, place + 1) if "." not in "".join(texts[n:place]))
        assert found["sentence-position"][0, place] == place - start, before


def test_tokens_of_a_word_are_counted(text_context):
    tokens = text_context.tokenizer(" Zyx Lily", return_tensors="pt").input_ids
    found = variables(["word-position"], tokens, text_context)["word-position"][0].tolist()
    texts = [text_context.tokenizer.decode([token]) for token in tokens[0].tolist()]
    assert len(texts) > 2
    starts = [place == 0 or text.startswith(" ") for place, text in enumerate(texts)]
    assert sum(starts) == 2
    expected = [n - max(i for i in range(n + 1) if starts[i]) for n in range(len(texts))]
    assert found == expected


def test_without_a_beginning_what_went_before_is_not_known(row, text_context):
    tokens = row[:, 1:]
    found = variables(["line-characters", "sentence-words"], tokens, text_context)
    texts = pieces(row, text_context)[1:]
    newline = next(n for n, text in enumerate(texts) if "\n" in text)
    stop = next(n for n, text in enumerate(texts) if "." in text)
    lines, words = found["line-characters"][0], found["sentence-words"][0]
    assert (lines[:newline] == NO_VALUE).all()
    assert (lines[newline:] != NO_VALUE).all()
    assert (words[: stop + 1] == NO_VALUE).all()
    assert words[stop + 1] == 1


def test_padding_has_no_value(row, text_context):
    mask = torch.ones_like(row, dtype=torch.bool)
    mask[:, -3:] = False
    for name, values in variables(TEXT_VARIABLES, row, text_context, mask).items():
        assert (values[:, -3:] == NO_VALUE).all(), name


def test_a_blank_that_the_tokenizer_drops_at_the_beginning_counts(row, text_context):
    class Drops:
        """As sentencepiece's tokenizers do."""

        def batch_decode(self, rows):
            return [text_context.tokenizer.decode(one).removeprefix(" ") for one in rows]

    context = ProbeContext(400, 128, text_context.bos_token_id, frozenset(), Drops())
    names = ["token-length", "line-characters", "sentence-words"]
    plain, dropped = variables(names, row, text_context), variables(names, row, context)
    for name in names:
        assert torch.equal(plain[name][:, 1:], dropped[name][:, 1:]), name


def test_mistakes(row, text_context, token_context):
    with pytest.raises(ValueError, match="unknown variable 'positon'; did you mean 'position'"):
        variables(["positon"], row, text_context)
    with pytest.raises(ValueError, match="'token-length' is told from the text"):
        variables(["token-length"], row, token_context)


def test_classes():
    manifold = Manifold("count", "position", 0, (2, 7), step=2, dimensions=1)
    values = torch.tensor([[NO_VALUE, 0, 1, 2, 3, 4, 5, 6, 7, 8]])
    assert classes_of(manifold, values).tolist() == [[-1, -1, -1, 0, 0, 1, 1, 2, 2, -1]]
