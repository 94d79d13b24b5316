"""What the study of line breaks takes for the best predictor, and for a moved break."""

import sys
from pathlib import Path

import pytest
import torch

from circuitkeep.manifolds.patching import Subspace
from circuitkeep.probes import NO_VALUE
from circuitkeep.probes.line_text import USUAL, WORDS, successors
from circuitkeep.probes.lines import draw_lines
from circuitkeep.tasks.line_breaks import line_break_tokenizer

SCRIPTS = Path(__file__).parents[1] / "scripts"
NEWLINE = 2


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(SCRIPTS))
    try:
        import study_line_breaks
        import study_line_breaks_causes
    finally:
        sys.path.remove(str(SCRIPTS))
    return study_line_breaks, study_line_breaks_causes


def possible(words):
    """The widths from 20 to 80 in which these tokens would have been laid out as they are."""
    lines, found = [[]], []
    for word in words:
        if word == "\n":
            lines.append([])
        else:
            lines[-1].append(word)
    for width in range(20, 81):
        lengths = [len(" ".join(line)) for line in lines]
        fits = all(length <= width for length in lengths)
        full = all(
            lengths[i] + 1 + len(lines[i + 1][0]) > width
            for i in range(len(lines) - 1)
            if lines[i + 1]
        )
        if fits and full:
            found.append(width)
    return found


def test_the_best_predictor_against_all_widths_and_words(study):
    """Chances are summed over every width and every next word."""
    tokenizer = line_break_tokenizer()
    lines = draw_lines(tokenizer, 3, 48, "held_out", 0, bos=0)
    low, high = study[0].width_bounds(lines)
    chosen, decided = study[0].best_predictor(lines)
    follows = successors()
    compared = 0
    for row in range(3):
        words = tokenizer.convert_ids_to_tokens(lines.tokens[row].tolist())
        for place in range(1, 48):
            if words[place] == "\n":
                continue
            widths = possible(words[1 : place + 1])
            assert [low[row, place], high[row, place]] == [widths[0], widths[-1]]
            usual = int(follows[WORDS.index(words[place])])
            count = int(lines.characters[row, place])
            broken, stays = 0.0, [0.0] * len(WORDS)
            for number, word in enumerate(WORDS):
                chance = (USUAL if number == usual else 0) + (1 - USUAL) / len(WORDS)
                fitting = sum(count + 1 + len(word) <= width for width in widths) / len(widths)
                broken += chance * (1 - fitting)
                stays[number] = chance * fitting
                if number == usual:
                    assert decided[row, place] == (fitting in (0, 1))
            # No other word can be likelier unless the usual one cannot come at all, and then a
            # break is likelier than both.
            assert chosen[row, place] == (broken > max(stays))
            compared += 1
    assert compared > 100


def test_last_lines_and_first_breaks_by_hand(study):
    tokens = torch.tensor([[0, 7, 8, 2, 9, 5, 2, 6], [0, 7, 2, 8, 9, 2, 5, 2]])

    class Batch:
        pass

    Batch.tokens = tokens
    line, _ = study[1].last_lines(Batch, NEWLINE)
    assert line.nonzero().tolist() == [[0, 4], [0, 5], [1, 6]]
    logits = torch.zeros(2, 8, 10)
    logits[0, 5, NEWLINE] = 1
    logits[1, 4, NEWLINE] = 1  # in another line
    logits[1, 6, 3] = 1
    logits[0, 4, 3] = 1
    assert study[1].first_break(logits, line, NEWLINE).tolist() == [5, study[1].LENGTH]


def test_what_is_moved_keeps_its_own_place(study):
    frame = torch.eye(4)[:, :2]
    space = Subspace(1, frame, torch.tensor([[0.0, 0.0], [1.0, 2.0], [5.0, 5.0]]))
    at = torch.tensor([[[0, 1, NO_VALUE], [1, 1, 2]]])
    own = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    edit = study[1].moved(space, at).resid[1]
    expected = own.clone()
    expected[0, 0] += torch.tensor([1.0, 2, 0, 0])
    assert torch.allclose(edit(own), expected)


def test_the_log_odds_of_a_break(study):
    logits = torch.tensor([[[0.0, 0.0, 1.0]]]).log_softmax(2)
    odds = study[1].log_odds(logits, torch.tensor([0]), 2)
    assert odds.item() == pytest.approx(1 - torch.tensor(2.0).log().item(), abs=1e-5)
