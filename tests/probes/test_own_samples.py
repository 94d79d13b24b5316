from dataclasses import replace

import pytest
import torch

from circuitkeep.probes import OwnSamples


def test_labels_and_answers(token_context, sound):
    probe = OwnSamples(length=20, aliases={"name-mover": "copy"})
    batch = probe.batch(token_context, "train", 12, 0)
    sound(batch)
    assert set(probe.labels) == set(batch.targets)
    assert torch.equal(batch.targets["name-mover"], batch.targets["copy"])
    expected = [
        (b, q)
        for b, row in enumerate(batch.tokens.tolist())
        for q in range(19)
        if row[q + 1] in row[1 : q + 1]
    ]
    assert (
        list(zip(batch.answer_row.tolist(), batch.answer_position.tolist(), strict=True))
        == expected
    )
    assert batch.corrupted is None
    assert probe.behaviours == ("accuracy",)


def test_all_answers_and_their_limit(token_context, sound, same):
    everything = OwnSamples(length=20, answers="all").batch(token_context, "train", 6, 0)
    assert len(everything.answer) == 6 * 19
    probe = OwnSamples(length=20, answers="all", max_answers=3)
    few = probe.batch(token_context, "train", 6, 0)
    sound(few)
    assert few.answer_row.bincount().tolist() == [3] * 6
    same(few, probe.batch(token_context, "train", 6, 0))


def test_no_row_is_in_both_splits(token_context):
    def sample(rows, length, seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(2, 5, (rows, length), generator=generator)

    context = replace(token_context, sample=sample)
    seen = {"train": set(), "held_out": set()}
    for split, rows in seen.items():
        for seed in range(20):
            tokens = OwnSamples(length=5).batch(context, split, 20, seed).tokens
            rows |= set(map(tuple, tokens.tolist()))
    assert not seen["train"] & seen["held_out"]
    assert len(seen["train"] | seen["held_out"]) > 200  # of 3^5 = 243


def test_rows_end_with_eos(text_context, sound):
    eos = text_context.tokenizer.eos_token_id
    bos = text_context.bos_token_id

    def sample(rows, length, seed):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(5, 60, (rows, length), generator=generator)
        tokens[:, 0] = bos
        tokens[::2, 6] = eos
        return tokens

    probe = OwnSamples(length=12, answers="all")
    batch = probe.batch(replace(text_context, sample=sample), "train", 20, 0)
    sound(batch)
    assert set(batch.mask.sum(dim=1).tolist()) == {7, 12}
    short = batch.mask.sum(dim=1) == 7
    assert (batch.tokens[short, 6] == eos).all()
    assert not batch.targets["previous-token"][short, 6].any()


def test_text_file(text_context, tmp_path, sound):
    path = tmp_path / "story.txt"
    path.write_text(" ".join(f"Lily and Tim saw {i} dogs." for i in range(400)), encoding="utf-8")
    probe = OwnSamples(length=16, dataset=str(path))
    rows = {}
    for split in ("train", "held_out"):
        batch = probe.batch(text_context, split, 60, 0)
        sound(batch)
        assert (batch.tokens[:, 0] == text_context.bos_token_id).all()
        rows[split] = set(map(tuple, batch.tokens.tolist()))
        assert len(rows[split]) > 50
    assert not rows["train"] & rows["held_out"]
    with pytest.raises(ValueError, match="of 10000 rows could be drawn"):
        probe.batch(text_context, "train", 10_000, 0)


def test_data_set_folder(text_context, tmp_path):
    datasets = pytest.importorskip("datasets")
    stories = [f"Lily saw {i} dogs and {i} cats." for i in range(40)]
    datasets.Dataset.from_dict({"story": stories}).save_to_disk(tmp_path / "stories")
    probe = OwnSamples(length=24, dataset=str(tmp_path / "stories"), column="story")
    assert len(probe.batch(text_context, "train", 5, 0)) == 5
    with pytest.raises(ValueError, match="no column 'stories'; did you mean 'story'"):
        replace(probe, column="stories").batch(text_context, "train", 5, 0)


def test_errors(token_context, text_context):
    with pytest.raises(ValueError, match="needs the base model to sample from"):
        OwnSamples(length=8).batch(text_context, "train", 2, 0)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        OwnSamples(length=8, dataset="x.txt").batch(token_context, "train", 2, 0)
    with pytest.raises(ValueError, match="of 128 tokens is longer than the model's context of 40"):
        OwnSamples().batch(token_context, "train", 2, 0)
    with pytest.raises(ValueError, match="by 'coppy'; did you mean 'copy'"):
        OwnSamples(aliases={"name-mover": "coppy"})
    with pytest.raises(ValueError, match="'repeats' or 'all', got 'some'"):
        OwnSamples(answers="some")
    with pytest.raises(ValueError, match="at least 2, got 1"):
        OwnSamples(length=1)
    with pytest.raises(ValueError, match="positive, got 0"):
        OwnSamples(max_answers=0)
