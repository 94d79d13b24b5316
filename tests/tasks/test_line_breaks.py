"""Rows of text in lines, and the model that learns where they break."""

import numpy as np
import pytest
import torch

from circuitkeep.capture import attach
from circuitkeep.capture.models import has_tokenizer, load_model, load_model_and_tokenizer
from circuitkeep.evals.capability import evaluate_capability
from circuitkeep.probes import LineBreaks
from circuitkeep.probes.line_text import WORDS, allowed_widths
from circuitkeep.probes.lines import draw_lines
from circuitkeep.probing import probe_context
from circuitkeep.tasks.line_breaks import (
    BOS,
    NEWLINE,
    STANDARD,
    UNKNOWN,
    LineBreakText,
    line_break_tokenizer,
    train_line_breaks,
)
from circuitkeep.tasks.trained_once import Recipe

SHORT = Recipe(steps=2, batch_size=4)
NEWLINE_ID = 2


def read(columns):
    """The lines of every row, but for its last, which the row may cut."""
    tokenizer = line_break_tokenizer()
    for tokens in columns["input_ids"]:
        words = tokenizer.convert_ids_to_tokens(tokens)
        assert words[0] == BOS
        yield [line.split() for line in " ".join(words[1:]).split(NEWLINE)][:-1]


def test_a_word_is_a_token_and_so_is_a_line_break():
    tokenizer = line_break_tokenizer()
    names = [BOS, UNKNOWN, NEWLINE, *WORDS]
    assert len(tokenizer) == len(set(names)) == len(names)
    ids = tokenizer("of the\nother tea")["input_ids"]
    assert [names[token] for token in ids] == ["of", "the", "\n", "other", UNKNOWN]
    assert ids[2] == NEWLINE_ID
    assert tokenizer.bos_token_id == 0


def test_rows_are_lines_and_line_breaks_their_answers():
    data = LineBreakText(train_rows=20, val_rows=20, length=96)
    for rows, split in ((data.train_rows, "train"), (data.val_rows, "held_out")):
        columns = rows.columns
        assert columns["attention_mask"].all()
        assert torch.equal(columns["labels"], columns["input_ids"])
        assert torch.equal(columns["answers"], columns["input_ids"] == NEWLINE_ID)
        widths = allowed_widths((20, 80), 5, split)
        for lines in read(columns):
            lengths = [len(" ".join(line)) for line in lines]
            limits = [n + 1 + len(line[0]) for n, line in zip(lengths, lines[1:], strict=False)]
            # Some width of this split explains every line.
            assert any(max(lengths) <= width < min(limits, default=81) for width in widths)


def test_seeds_splits_and_usage_give_other_rows():
    before = torch.get_rng_state()
    one, same, other, words = (
        LineBreakText(4, 4, length=48, seed=seed, usage=usage)
        for seed, usage in ((1, 0), (1, 0), (2, 0), (1, 1))
    )
    ids = [d.train_rows.columns["input_ids"] for d in (one, same, other, words)]
    ids.append(one.val_rows.columns["input_ids"])
    assert torch.equal(ids[0], ids[1])
    assert not any(torch.equal(ids[0], different) for different in ids[2:])
    assert torch.equal(before, torch.get_rng_state())


def test_very_wide_lines_are_text_without_breaks():
    columns = LineBreakText(4, 4, length=48, widths=[2000, 2010]).train_rows.columns
    assert not (columns["input_ids"] == NEWLINE_ID).any()


def test_any_text_in_any_tokenizer(tmp_path):
    (tmp_path / "prose.txt").write_text("of the other house and the tea " * 100)
    data = LineBreakText(4, 4, length=32, text=str(tmp_path / "prose.txt"))
    lines = next(iter(read(data.train_rows.columns)))
    assert {word for line in lines for word in line} == {
        "of",
        "the",
        "other",
        "house",
        "and",
        "<unk>",
    }


def test_trains_a_model(tmp_path):
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    path = train_line_breaks(tmp_path, 0, SHORT, progress_bar=False)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    again = load_model(train_line_breaks(tmp_path / "b", 0, SHORT, progress_bar=False))
    model, tokenizer = load_model_and_tokenizer(path)
    assert has_tokenizer(path)
    assert tokenizer("of\nthe")["input_ids"][1] == NEWLINE_ID
    weights = dict(model.named_parameters())
    for name, weight in again.named_parameters():
        assert torch.equal(weight, weights[name]), name
    backend = attach(model)
    rows = LineBreaks().batch(probe_context(backend, tokenizer), "held_out", 2, 0)
    assert (rows.answer == NEWLINE_ID).all()


# What it must show


@pytest.mark.slow
def test_line_breaks_are_learned(tmp_path):
    """On text and widths that were never trained on, the lines whose width none can know included.

    Predicting a break everywhere would do as well, so the other words near a line's end count too.
    """
    path = train_line_breaks(tmp_path, 0, STANDARD, progress_bar=False)
    model, tokenizer = load_model_and_tokenizer(path)
    data = LineBreakText(1, 512, seed=100)
    accuracy = evaluate_capability(model, data.val_dataloader())["accuracy"]
    lines = draw_lines(tokenizer, 512, 192, "held_out", 201, bos=0)
    assert torch.equal(lines.tokens, data.val_rows.columns["input_ids"])
    near = ~lines.breaks & (lines.next_length >= 0) & (lines.width - lines.characters < 14)
    near[:, -1] = False
    backend = attach(model)
    with torch.no_grad():
        parts = [backend.forward(part).argmax(2) for part in lines.tokens.split(64)]
    left_alone = (torch.cat(parts) != NEWLINE_ID)[near].float().mean().item()
    print(f"\nline breaks {accuracy:.3f}, words near a line's end {left_alone:.3f}")
    assert accuracy >= 0.9
    assert left_alone >= 0.85
