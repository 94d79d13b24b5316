"""Rows of indirect objects, and the model that learns them with few of its heads needed."""

import numpy as np
import pytest
import torch
import yaml

from circuitkeep.capture import attach
from circuitkeep.capture.models import has_tokenizer, load_model, load_model_and_tokenizer
from circuitkeep.causal import MEAN, search_circuit
from circuitkeep.cli.surroundings import config_directory
from circuitkeep.evals.capability import evaluate_capability
from circuitkeep.probes import build_probe
from circuitkeep.probing import probe_context
from circuitkeep.tasks.indirect_objects import (
    BOS,
    END,
    FILLERS,
    HELD_OUT_NAMES,
    NAMES,
    STANDARD,
    WORDS,
    IndirectObjects,
    indirect_objects,
    ioi_tokenizer,
    train_ioi,
)
from circuitkeep.tasks.trained_once import Recipe

ALL_NAMES = {*NAMES, *HELD_OUT_NAMES}
SHORT = Recipe(steps=2, batch_size=4)


def read(columns):
    """Words before the answer and the answer, of every row; the columns are checked on the way."""
    for tokens, mask, labels, asked in zip(*columns.values(), strict=True):
        (place,) = asked.nonzero().flatten().tolist()
        assert mask.tolist() == [1] * (place + 1) + [0] * (len(mask) - place - 1)
        assert (labels != -100).nonzero().flatten().tolist() == [place]
        assert labels[place] == tokens[place]
        words = [WORDS[token] for token in tokens[: place + 1].tolist()]
        assert words[0] == BOS
        yield words[1:-1], words[-1]


@pytest.fixture(scope="module", params=[False, True], ids=["train", "held out"])
def rows(request):
    """Whether they are held out, and `read` of them."""
    return request.param, list(read(indirect_objects(1500, 0, request.param)))


def test_one_name_stands_twice_and_the_other_answers(rows):
    for words, answer in rows[1]:
        names = [word for word in words if word in ALL_NAMES]
        assert len(names) == 3
        assert names.count(answer) == 1
        assert len(set(names)) == 2
        assert words[-1] == END
        assert set(words[:-1]) <= {*FILLERS, *names}


def test_orders_are_balanced_and_no_place_gives_the_answer(rows):
    """The answer is as often the first, the second and the third name, wherever these stand."""
    orders, places, answers = [], [], []
    for words, answer in rows[1]:
        where = [place for place, word in enumerate(words) if word in ALL_NAMES]
        orders.append([words[place] for place in where].index(answer))
        places.append([*where, len(words)])
        answers.append(words.index(answer))
    orders, places = np.array(orders), np.array(places)
    assert np.bincount(orders) / len(orders) == pytest.approx(np.full(3, 1 / 3), abs=0.05)
    for column in (*places.T, *np.diff(places).T):
        for value in np.unique(column):
            chosen = orders[column == value]
            shares = np.bincount(chosen, minlength=3) / len(chosen)
            # Four standard errors.
            assert shares == pytest.approx(1 / 3, abs=4 * (2 / 9 / len(chosen)) ** 0.5)
    # The best guess that knows places alone, absolute or from the end.
    for guess in (np.array(answers), places[:, -1] - answers):
        assert np.bincount(guess).max() / len(guess) < 0.4


def test_held_out_pairs_never_meet_in_training(rows):
    held_out, found = rows
    pairs = [{word for word in words if word in ALL_NAMES} for words, _ in found]
    strangers = [pair <= set(HELD_OUT_NAMES) for pair in pairs]
    assert all(strangers) if held_out else not any(strangers)
    assert set().union(*pairs) == (set(HELD_OUT_NAMES) if held_out else ALL_NAMES)


def test_same_seed_same_rows_and_global_rng_untouched():
    before = torch.get_rng_state()
    a, b, c = (indirect_objects(8, seed)["input_ids"] for seed in (3, 3, 4))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.get_rng_state())


def test_the_data_module_holds_out_pairs():
    data = IndirectObjects(train_rows=50, val_rows=50, seed=1)
    assert torch.equal(data.train_rows.columns["input_ids"], indirect_objects(50, 2)["input_ids"])
    for words, _ in read(data.val_rows.columns):
        assert {word for word in words if word in ALL_NAMES} <= set(HELD_OUT_NAMES)


def test_a_word_is_a_token():
    tokenizer = ioi_tokenizer()
    assert len(tokenizer) == len(set(WORDS)) == len(WORDS)
    text = "then Aaron met Tim and nobody gave"
    ids = tokenizer(text)["input_ids"]
    assert [WORDS[token] for token in ids] == text.replace("nobody", "<unk>").split()
    assert tokenizer.bos_token_id == WORDS.index(BOS) == 0


def test_trains_a_model_of_attention_alone(tmp_path):
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    path = train_ioi(tmp_path, 0, SHORT, progress_bar=False)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    again = load_model(train_ioi(tmp_path / "b", 0, SHORT, progress_bar=False))
    other = load_model(train_ioi(tmp_path, 1, SHORT, progress_bar=False))
    model, tokenizer = load_model_and_tokenizer(path)
    assert has_tokenizer(path)
    assert tokenizer("Tim gave")["input_ids"] == [WORDS.index("Tim"), WORDS.index("gave")]
    weights = dict(model.named_parameters())
    assert not any(weights[name].any() for name in weights if ".mlp." in name)
    for name, weight in again.named_parameters():
        assert torch.equal(weight, weights[name]), name
    assert not torch.equal(other.model.embed_tokens.weight, model.model.embed_tokens.weight)


# The probe that ships for it


@pytest.fixture(scope="module")
def probe():
    return build_probe(yaml.safe_load((config_directory() / "probe/ioi.yaml").read_text()))


def test_the_probes_words_are_the_models(probe):
    for texts in (probe.templates, probe.held_out["templates"]):
        for text in texts:
            words = text.replace("{A}", "").replace("{B}", "").split()
            assert set(words) <= {*FILLERS, END}
    assert set(probe.fillers["A"]) <= set(NAMES)
    assert set(probe.held_out["fillers"]["A"]) == set(HELD_OUT_NAMES)


def test_the_probe_holds_each_sentence_in_all_orders(probe):
    for texts in (probe.templates, probe.held_out["templates"]):
        sentences = {}
        for text in texts:
            names = [word[1] for word in text.split() if word.startswith("{")]
            assert names[-1] == "A"
            bare = text.replace("{A}", "{}").replace("{B}", "{}")
            sentences.setdefault(bare, set()).add("".join(names[:-1]))
        assert all(orders == {"ABB", "BAB", "BBA"} for orders in sentences.values())


# What it must show


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_part_of_the_heads_is_faithful(tmp_path, probe, seed):
    """On pairs of names that never met, in sentences that were not searched on.

    The search asks for more than the 87% that are claimed, which were Wang et al.'s figure in
    GPT-2 small: what is just reached on the rows that heads are chosen on falls short on others.
    """
    path = train_ioi(tmp_path, seed, STANDARD, progress_bar=False)
    model, tokenizer = load_model_and_tokenizer(path)
    rows = IndirectObjects(1, 2048, seed=100 + seed).val_dataloader()
    accuracy = evaluate_capability(model, rows)["accuracy"]
    backend = attach(model)
    context = probe_context(backend, tokenizer)
    train, held_out = (probe.batch(context, split, 256, 10000) for split in ("train", "held_out"))
    # Means over the rows at hand, all positions of them.
    found = search_circuit(backend, train, held_out, MEAN, "logit_difference", wanted=0.95)
    low, high = found.interval
    print(
        f"\nseed {seed}: held-out accuracy {accuracy:.3f}; {len(found.heads)} of {found.n_heads} "
        f"heads, {' '.join(map(str, found.heads))}; faithfulness {found.train_faithfulness:.2f} "
        f"on train rows, {found.faithfulness:.2f} [{low:.2f}, {high:.2f}] held out; random sets "
        f"{min(found.random):.2f} to {max(found.random):.2f}"
    )
    assert accuracy >= 0.95
    assert found.reached
    assert len(found.heads) < found.n_heads
    assert found.faithfulness >= 0.87
