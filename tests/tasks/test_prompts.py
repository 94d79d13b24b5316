import json

import pytest

from circuitkeep.tasks.prompts import TextPrompts

BOS = 32


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def served(rows):
    columns = rows.columns
    return [
        ids[mask.bool()].tolist()
        for ids, mask in zip(columns["input_ids"], columns["attention_mask"], strict=True)
    ]


def test_prompts_and_answers(tmp_path, word_tokenizer):
    path = write(
        tmp_path / "a.jsonl",
        {"prompt": "w1 w2", "answer": "w3"},
        {"prompt": "w4", "answer": "w5 w6"},
    )
    data = TextPrompts(path, None, word_tokenizer)
    data.setup()
    assert served(data.train_rows) == [[BOS, 1, 2], [BOS, 4]]
    assert data.train_rows.columns["answer"].tolist() == [[3, -100], [5, 6]]
    assert data.val_rows is None


def test_lines_of_text_have_no_answers(tmp_path, word_tokenizer):
    path = tmp_path / "a.txt"
    path.write_text("w1 w2\n\nw3\n")
    data = TextPrompts(path, 0.5, word_tokenizer)
    data.setup()
    assert sorted(served(data.train_rows) + served(data.val_rows)) == [[BOS, 1, 2], [BOS, 3]]
    assert "answer" not in data.train_rows.columns


def test_long_prompts_are_left_out_and_counted(tmp_path, word_tokenizer):
    path = write(tmp_path / "a.jsonl", {"prompt": "w1 w2 w3"}, {"prompt": "w4"})
    data = TextPrompts(path, None, word_tokenizer, max_prompt_tokens=3)
    with pytest.warns(UserWarning, match="1 of 2 rows have a prompt of more than .*=3 tokens"):
        data.setup()
    assert served(data.train_rows) == [[BOS, 4]]
    data = TextPrompts(path, None, word_tokenizer, max_prompt_tokens=1)
    with pytest.raises(ValueError, match="all 2 rows have a prompt of more than"):
        data.setup()


@pytest.mark.parametrize(
    ("name", "message"),
    [("a.csv", "prompts are read from"), ("a.txt", "there is no data file"), ("b.txt", "is empty")],
)
def test_files_that_cannot_be(tmp_path, word_tokenizer, name, message):
    (tmp_path / "b.txt").write_text(" \n")
    with pytest.raises(ValueError, match=message):
        TextPrompts(tmp_path / name, None, word_tokenizer).setup()
    with pytest.raises(ValueError, match="text needs a tokenizer"):
        TextPrompts(tmp_path / name, None).setup()
    with pytest.raises(ValueError, match=r"validation=2.0 is not a fraction"):
        TextPrompts(tmp_path / name, 2.0, word_tokenizer)
