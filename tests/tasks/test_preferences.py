import json

import pytest

from circuitkeep.tasks.preferences import TextPreferences

BOS, EOS = 32, 33


def data_of(path, tokenizer, *pairs, **options):
    records = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    data = TextPreferences(path, options.pop("validation", None), tokenizer, **options)
    data.setup()
    return data


def test_both_texts_follow_the_prompt(tmp_path, word_tokenizer):
    pairs = ("w1 w2", "w3", "w4 w5"), ("w6", "w7 w8", "w9")
    rows = data_of(tmp_path / "a.jsonl", word_tokenizer, *pairs).train_rows.columns
    expected = {
        "chosen": ([[BOS, 1, 2, 3, EOS], [BOS, 6, 7, 8, EOS]], [3, 2]),
        "rejected": ([[BOS, 1, 2, 4, 5, EOS], [BOS, 6, 9, EOS, 0, 0]], [3, 2]),
    }
    for name, (ids, starts) in expected.items():
        assert rows[f"{name}_ids"].tolist() == ids
        for row, start in enumerate(starts):
            real = rows[f"{name}_mask"][row].bool()
            labels = rows[f"{name}_labels"][row]
            assert (labels[:start] == -100).all()
            assert (labels[~real] == -100).all()
            inside = rows[f"{name}_ids"][row][real][start:]
            assert labels[real][start:].tolist() == inside.tolist()


def test_texts_are_cut_at_their_end_and_equal_pairs_left_out(tmp_path, word_tokenizer):
    pairs = (
        ("w1", "w2 w3", "w4 w5"),
        ("w1", "w2 w3", "w2 w5"),  # equal once they are cut
        ("w1 w2 w3", "w4", "w5"),  # no room for either
    )
    with pytest.warns(UserWarning, match="2 of 3 rows have the same chosen and rejected text"):
        data = data_of(tmp_path / "a.jsonl", word_tokenizer, *pairs, max_length=3)
    assert data.train_rows.columns["chosen_ids"].tolist() == [[BOS, 1, 2]]
    assert data.train_rows.columns["rejected_ids"].tolist() == [[BOS, 1, 4]]
    with pytest.raises(ValueError, match=r"all 3 rows .* nothing is left to train on"):
        data_of(tmp_path / "a.jsonl", word_tokenizer, *pairs, max_length=2)


def test_a_part_is_held_out(tmp_path, word_tokenizer):
    pairs = [("w1", f"w{i}", "w30") for i in range(10)]
    data = data_of(tmp_path / "a.jsonl", word_tokenizer, *pairs, validation=0.2)
    assert (len(data.train_rows), len(data.val_rows)) == (8, 2)


def test_files_that_cannot_be(tmp_path, word_tokenizer):
    with pytest.raises(ValueError, match=r"preferences are read from a .jsonl file"):
        TextPreferences(tmp_path / "a.txt", None, word_tokenizer).setup()
    with pytest.raises(ValueError, match=r"a.jsonl:1: 'rejected' is empty"):
        data_of(tmp_path / "a.jsonl", word_tokenizer, ("w1", "w2", ""))
    with pytest.raises(ValueError, match="max_length must be at least 2"):
        data_of(tmp_path / "a.jsonl", word_tokenizer, ("w1", "w2", "w3"), max_length=1)
