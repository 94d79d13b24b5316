"""Text in lines: where it breaks, and what its tokens are labelled with."""

import itertools
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from circuitkeep.probes import NO_VALUE, LineBreaks, ProbeContext, build_probe
from circuitkeep.probes.line_text import (
    USUAL,
    WORDS,
    allowed_widths,
    successors,
    texts,
    walks,
    wrap,
)
from circuitkeep.probes.lines import draw_lines, read_lines
from circuitkeep.tasks.indirect_objects import ioi_tokenizer
from circuitkeep.tasks.line_breaks import line_break_tokenizer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def words():
    return line_break_tokenizer()


@pytest.fixture(scope="module")
def subwords():
    """Byte-level, as GPT-2's, with hardly any merges: nearly every letter is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, "th", "the", "Ġa"])}
    inner = Tokenizer(models.BPE(vocab, [("t", "h"), ("th", "e"), ("Ġ", "a")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def context(tokenizer, **changes):
    bos = tokenizer.bos_token_id
    special = frozenset() if bos is None else frozenset({bos})
    return replace(ProbeContext(len(tokenizer), 192, bos, special, tokenizer), **changes)


# The text


def test_words_are_different_and_evenly_long():
    assert len(set(WORDS)) == len(WORDS) == 240
    assert [len(word) for word in WORDS] == [n for n in range(2, 14) for _ in range(20)]


def test_the_usual_words_are_one_cycle():
    follows = successors()
    assert not torch.equal(follows, successors(1))
    word, seen = 0, set()
    for _ in range(len(WORDS)):
        seen.add(word)
        word = int(follows[word])
    assert word == 0
    assert len(seen) == len(WORDS)


def test_a_word_mostly_has_one_successor():
    drawn = walks(200, 100, generator())
    usual = (drawn[:, 1:] == successors()[drawn[:, :-1]]).float().mean().item()
    assert usual == pytest.approx(USUAL + (1 - USUAL) / len(WORDS), abs=0.01)


@pytest.mark.parametrize("file", [None, "prose.txt"])
def test_splits_share_no_text(tmp_path, file):
    if file is not None:
        file = str(tmp_path / file)
        numbers = torch.randint(10**6, (4000,), generator=generator()).tolist()
        (tmp_path / "prose.txt").write_text("\n ".join(map(str, numbers)))
    train, held_out = (texts(20, 50, split, generator(), file) for split in ("train", "held_out"))
    assert len(train) == len(held_out) == 20
    assert {len(text) for text in [*train, *held_out]} == {50}
    pairs = [
        {" ".join(text[i : i + 8]) for text in part for i in range(43)}
        for part in (train, held_out)
    ]
    if file is not None:
        assert not pairs[0] & pairs[1]
    assert not {tuple(text) for text in train} & {tuple(text) for text in held_out}


def test_a_text_that_is_too_short(tmp_path):
    (tmp_path / "short.txt").write_text("a few words")
    with pytest.raises(ValueError, match="has 3 words, of which no passage of 100 is train"):
        texts(1, 50, "train", generator(), str(tmp_path / "short.txt"))


def test_widths_are_divided():
    train, held_out = (allowed_widths((20, 80), 5, split) for split in ("train", "held_out"))
    assert held_out == [22, 27, 32, 37, 42, 47, 52, 57, 62, 67, 72, 77]
    assert sorted([*train, *held_out]) == list(range(20, 81))
    with pytest.raises(ValueError, match=r"no width of 30 to 30 is held_out with every=5"):
        allowed_widths((30, 30), 5, "held_out")


def test_lines_hold_what_fits_and_no_more():
    """Against the rule, word by word."""
    text = texts(1, 300, "train", generator())[0]
    for width in (13, 20, 41, 80):
        lines = wrap(text, width).split("\n")
        assert " ".join(lines).split(" ") == text
        for line, following in itertools.pairwise(lines):
            assert len(line) <= width < len(line) + 1 + len(following.split(" ")[0])
    assert wrap(["a", "well-meant", "b"], 4) == "a\nwell-meant\nb"


# Its tokens


def test_what_is_known_at_each_token_by_hand(words):
    """`of the` is 6 characters; `that` would make it 11."""
    text = ["of", "the", "that", "to", "of"]
    lines = read_lines([text], [8], words, 7, 0)
    ids = {word: place for place, word in enumerate(["<s>", "<unk>", "\n", *WORDS])}
    assert lines.tokens.tolist() == [
        [ids[w] for w in ["<s>", "of", "the", "\n", "that", "to", "\n"]]
    ]
    no = NO_VALUE
    assert lines.newline.tolist() == [[False, False, False, True, False, False, True]]
    assert lines.breaks.tolist() == [[False, False, True, False, False, True, False]]
    assert lines.characters.tolist() == [[no, 2, 6, 0, 4, 7, 0]]
    assert lines.width.tolist() == [[no, 8, 8, 8, 8, 8, 8]]
    assert lines.line.tolist() == [[no, 0, 0, 1, 1, 1, 2]]
    assert lines.next_length.tolist() == [[no, 3, 4, no, 2, 2, no]]
    of_next = [ids[w] for w in ("the", "that", "to", "of")]
    assert lines.next_token.tolist() == [[no, *of_next[:2], no, *of_next[2:], no]]
    assert lines.mask.all()


def test_a_text_shorter_than_its_row_is_padded(words):
    lines = read_lines([["of", "the"]], [20], words, 5, 0)
    assert lines.mask.tolist() == [[True, True, True, False, False]]
    # Nothing comes after the last word.
    assert lines.next_length.tolist() == [[NO_VALUE, 3, NO_VALUE, NO_VALUE, NO_VALUE]]


@pytest.mark.parametrize("kind", ["words", "subwords"])
def test_every_token_against_the_text_itself(kind, request):
    """Rows are decoded again, and every label is counted anew from the characters."""
    tokenizer = request.getfixturevalue(kind)
    lines = draw_lines(tokenizer, 6, 100, "train", 0, bos=tokenizer.bos_token_id, widths=(20, 40))
    start = tokenizer.bos_token_id is not None
    assert lines.mask.all()
    for row in range(6):
        text, places = "", []
        for token in lines.tokens[row, start:].tolist():
            piece = tokenizer.decode([token])
            glue = " " if kind == "words" and text[-1:] not in ("", "\n") and piece != "\n" else ""
            text += glue + piece
            places.append(len(text))
        for place, end in enumerate(places, start=start):
            line = text[:end].split("\n")
            assert lines.characters[row, place] == len(line[-1])
            assert lines.line[row, place] == len(line) - 1
            assert lines.newline[row, place] == (text[end - 1] == "\n")
            assert len(line[-1]) <= lines.width[row, place]
            after = text[end:]
            if after[:1] in (" ", "\n") and after.strip() and text[end - 1] not in " \n":
                word = after.split()[0]
                assert lines.breaks[row, place] == (after[0] == "\n")
                if after.split(word, 1)[1]:  # the row ends no sooner than the word
                    assert lines.next_length[row, place] == len(word)
                    first = tokenizer(f"a {word}")["input_ids"][1]
                    assert lines.next_token[row, place] == first
            elif after.strip():
                assert lines.next_length[row, place] == NO_VALUE


def test_tokenizers_that_will_not_do(words):
    with pytest.raises(ValueError, match=r"fast one of Hugging Face.*NoneType"):
        draw_lines(None, 1, 50, "train", 0, bos=None)
    with pytest.raises(ValueError, match="loses line breaks"):
        draw_lines(ioi_tokenizer(), 1, 50, "train", 0, bos=0)


# The probe


@pytest.fixture(scope="module")
def batch(words):
    return LineBreaks(length=96, widths=(20, 40)).batch(context(words), "held_out", 8, 0)


def test_answers_are_line_breaks_and_distractors_the_next_words(batch, words):
    newline = words.convert_tokens_to_ids("\n")
    assert (batch.answer == newline).all()
    at = batch.answer_row, batch.answer_position
    assert (batch.tokens[at[0], at[1] + 1] == newline).all()
    inside = batch.answer_position + 2 < batch.tokens.shape[1]
    following = batch.tokens[at[0][inside], at[1][inside] + 2]
    assert torch.equal(batch.distractor[inside], following)
    # It would not have fitted: remaining is at most its length.
    assert (batch.variables["remaining"][at] <= batch.variables["next-length"][at]).all()
    # From the fourth line on.
    breaks = (batch.tokens == newline).cumsum(1)
    assert (breaks[at] >= 3).all()
    assert len(batch.answer) == ((batch.tokens == newline) & (breaks > 3)).sum()


def test_variables_fit_together(batch):
    one = batch.variables
    known = one["width"] != NO_VALUE
    assert torch.equal(known, one["remaining"] != NO_VALUE)
    assert torch.equal((one["characters"] + one["remaining"])[known], one["width"][known])
    held_out = allowed_widths((20, 40), 5, "held_out")
    assert set(one["width"][known].tolist()) <= set(held_out)
    ends = batch.answer_row, batch.answer_position + 1
    assert torch.equal(one["line-length"][ends], one["characters"][ends[0], ends[1] - 1])
    assert torch.equal(one["line-length"] != NO_VALUE, one["characters"] == 0)


def test_targets_by_hand(words):
    found = LineBreaks(length=9, widths=(18, 22), from_line=1)
    batch = found.batch(context(words), "held_out", 64, 0)
    newline = words.convert_tokens_to_ids("\n")
    for row, tokens in enumerate(batch.tokens.tolist()):
        breaks = [place for place, token in enumerate(tokens) if token == newline]
        line = [sum(place <= query for place in breaks) for query in range(9)]
        for query in range(1, 9):
            before = range(1, query)
            same = [key for key in before if line[key] == line[query]]
            wanted = {
                "newline": [key for key in same if key in breaks],
                "line": [key for key in same if key not in breaks],
                "boundary": [key for key in before if key in breaks]
                if query + 1 in breaks and line[query] >= 1
                else [],
            }
            for role, keys in wanted.items():
                assert batch.targets[role][row, query].nonzero().flatten().tolist() == keys, role
        assert not any(target[row, 0].any() for target in batch.targets.values())


def test_splits_share_neither_width_nor_row(words):
    one = LineBreaks(length=64)
    train, held_out = (one.batch(context(words), split, 32, 0) for split in ("train", "held_out"))
    widths = [
        set(part.variables["width"].unique().tolist()) - {NO_VALUE} for part in (train, held_out)
    ]
    assert not widths[0] & widths[1]
    rows = [{tuple(row) for row in part.tokens.tolist()} for part in (train, held_out)]
    assert not rows[0] & rows[1]


def test_same_seed_same_rows(words):
    a, b, c = (LineBreaks(length=64).batch(context(words), "train", 4, seed) for seed in (3, 3, 4))
    assert torch.equal(a.tokens, b.tokens)
    assert not torch.equal(a.tokens, c.tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"widths": [40]}, r"widths must be \[narrowest, widest\] .* got \[40\]"),
        ({"widths": [40, 20]}, "widths must be"),
        ({"every": 1}, "every must be at least 2, got 1"),
        ({"length": 1}, "length must be at least 2, got 1"),
    ],
)
def test_settings_that_will_not_do(settings, message):
    with pytest.raises(ValueError, match=message):
        build_probe({"_target_": "circuitkeep.probes.LineBreaks", **settings})


def test_rows_that_do_not_fit(words):
    with pytest.raises(ValueError, match=r"193 tokens is longer .* 192; lower LineBreaks.length"):
        LineBreaks(length=193).batch(context(words), "train", 1, 0)
    with pytest.raises(ValueError, match="no row of 12 tokens has 4 line breaks"):
        LineBreaks(length=12, widths=(70, 80)).batch(context(words), "train", 1, 0)


def test_at_length(words):
    assert LineBreaks().at_length(32) == LineBreaks(length=32)
