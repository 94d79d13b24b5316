import pytest

from circuitkeep.tasks.records import continuation_tokens, read_records, split_records


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"x.jsonl:3 is not JSON"),
        ("[1]", r"x.jsonl:3 holds a list instead of an object"),
        ('{"prompt": "a"}', r"x.jsonl:3 has no 'chosen'; its fields: 'prompt'"),
        ('{"prompt": "a", "chosen": 1}', r"x.jsonl:3: 'chosen' is a int, and should be a text"),
        ('{"prompt": "a", "chosen": " "}', r"x.jsonl:3: 'chosen' is empty; leave the line out"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path, line, message):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "more": 3}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_records(path, ["prompt", "chosen"])


def test_records(tmp_path):
    path = tmp_path / "x.jsonl"
    with pytest.raises(ValueError, match="there is no data file"):
        read_records(path, ["prompt"])
    path.write_text("\n")
    with pytest.raises(ValueError, match="is empty"):
        read_records(path, ["prompt"])
    path.write_text('{"prompt": "a", "answer": "b", "more": 3}\n{"prompt": "c"}\n')
    found = read_records(path, ["prompt"], ["answer"])
    assert found == [{"prompt": "a", "answer": "b"}, {"prompt": "c"}]


def test_split():
    train, held_out = split_records(list(range(10)), 0.2, seed=1)
    assert len(held_out) == 2
    assert sorted(train + held_out) == list(range(10))
    assert held_out != split_records(list(range(10)), 0.2, seed=4)[1]
    with pytest.raises(ValueError, match=r"holding out 0.01 of 10 rows"):
        split_records(list(range(10)), 0.01, seed=0)


class Joining:
    """A tokenizer of letters that has one token for "ab"."""

    def __call__(self, text, **options):
        return {"input_ids": [ord(c) for c in text.replace("ab", "X")]}


def test_a_continuation_follows_its_prompt():
    assert continuation_tokens(Joining(), "x", "ab") == [ord("X")]
    assert continuation_tokens(Joining(), "xa", "bc") == [ord("b"), ord("c")]
