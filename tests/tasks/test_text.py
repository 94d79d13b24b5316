import json

import datasets
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from circuitkeep.tasks.documents import read_documents
from circuitkeep.tasks.text import TextData, Tokens, hold_out

LETTERS = "abcdefghijklmnopqrstuvwxyz"
BOS, EOS = 0, 1


def tokenizer(bos="<s>", eos="</s>"):
    """One token per letter: a is 2, b is 3, ..."""
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", *LETTERS, "?"])}
    model = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    model.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token=bos, eos_token=eos, unk_token="?"
    )


def ids(text):
    return [LETTERS.index(letter) + 2 for letter in text]


def rows(tmp_path, text, name="data.txt", **options):
    path = tmp_path / name
    path.write_text(text)
    options = {"tokenizer": tokenizer(), "validation": None, "block_size": 5, **options}
    data = TextData(str(path), **options)
    data.setup()
    return data.train_rows.columns


def jsonl(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_one_text_becomes_contiguous_blocks(tmp_path):
    columns = rows(tmp_path, LETTERS[:9])
    assert columns["input_ids"].tolist() == [
        [BOS, *ids("abcd")],
        [BOS, *ids("efgh")],
        [BOS, *ids("i"), EOS, 0, 0],
    ]
    assert columns["attention_mask"].tolist() == [[1] * 5, [1] * 5, [1, 1, 1, 0, 0]]
    assert columns["labels"].tolist() == [
        [-100, *ids("abcd")],
        [-100, *ids("efgh")],
        [-100, *ids("i"), EOS, -100, -100],
    ]
    assert "answers" not in columns


def test_without_bos(tmp_path):
    columns = rows(tmp_path, LETTERS[:9], bos=False)
    assert columns["input_ids"].tolist() == [ids("abcde"), [*ids("fghi"), EOS]]
    assert torch.equal(columns["labels"], columns["input_ids"])


def test_documents_are_packed_with_eos_between(tmp_path):
    columns = rows(tmp_path, jsonl({"text": "ab"}, {"text": "cde"}), "data.jsonl", block_size=8)
    assert columns["input_ids"].tolist() == [[BOS, *ids("ab"), EOS, *ids("cde"), EOS]]


def test_one_row_per_document(tmp_path):
    text = jsonl({"text": "ab"}, {"text": "cdefgh"})
    columns = rows(tmp_path, text, "data.jsonl", packing=False)
    assert columns["input_ids"].tolist() == [[BOS, *ids("ab"), EOS, 0], [BOS, *ids("cdef")]]
    assert columns["attention_mask"].tolist() == [[1, 1, 1, 1, 0], [1] * 5]
    assert columns["labels"].tolist()[0] == [-100, *ids("ab"), EOS, -100]


@pytest.mark.parametrize("packing", [True, False])
def test_prompts_are_read_but_not_learned(tmp_path, packing):
    text = jsonl({"prompt": "ab", "completion": "c"})
    columns = rows(tmp_path, text, "data.jsonl", packing=packing)
    assert columns["input_ids"].tolist() == [[BOS, *ids("abc"), EOS]]
    assert columns["labels"].tolist() == [[-100] * 3 + [*ids("c"), EOS]]
    assert columns["answers"].tolist() == [[False] * 3 + [True] * 2]


def test_a_prompt_that_fills_its_row_is_an_error(tmp_path):
    text = jsonl({"text": "a"}, {"prompt": "abcdef", "completion": "g"})
    with pytest.raises(ValueError, match="prompt of document 2 fills its row of 5 tokens"):
        rows(tmp_path, text, "data.jsonl", packing=False)


def test_every_kind_of_source_gives_the_same_documents(tmp_path):
    records = [{"text": "ab"}, {"text": "cd"}]
    table = datasets.Dataset.from_list(records)
    table.to_parquet(str(tmp_path / "data.parquet"))
    table.save_to_disk(str(tmp_path / "folder"))
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "folders"))
    (tmp_path / "data.jsonl").write_text("\n" + jsonl(*records))
    wanted = read_documents(["ab", "cd"])
    for name in ("data.parquet", "folder", "folders", "data.jsonl"):
        assert read_documents(tmp_path / name) == wanted, name
    assert read_documents(records) == wanted
    with pytest.raises(ValueError, match="no split 'validation'; it has train"):
        read_documents(tmp_path / "folders", split="validation")


def test_hub_errors_are_one_sentence(monkeypatch):
    def unreachable(name, split):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match=r"'someone/stories' is neither a file.* no route to host"):
        read_documents("someone/stories")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "", "x.txt is empty"),
        ("x.txt", b"\xff\xfe\xfa", "x.txt is not UTF-8 text"),
        ("x.jsonl", "\n", "x.jsonl is empty"),
        ("x.jsonl", '{"text": "a"}\n\n{"text": ', "x.jsonl, line 3 is not JSON: Expecting value"),
        ("x.jsonl", "[1]", "line 1 holds a list instead of an object"),
        ("x.jsonl", '{"text": 3}', "line 1 holds a int where a text should be"),
        ("x.jsonl", '{"text": ""}', "line 1 has an empty text"),
        (
            "x.jsonl",
            '{"body": "a", "prompt": "b"}',
            "line 1 has neither 'text' nor 'prompt' with 'completion'; "
            "its fields: 'body', 'prompt'",
        ),
        ("x.parquet", "not parquet", "x.parquet is not a readable Parquet file"),
        ("x.csv", "a,b", r"not a kind of data file known here: \.txt, \.jsonl, \.parquet"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=message):
        read_documents(path)


def test_missing_things_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no data file .*gone\.txt"):
        read_documents(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match="was not written by datasets' save_to_disk"):
        read_documents(tmp_path)
    with pytest.raises(ValueError, match="the list of documents is empty"):
        read_documents([])
    with pytest.raises(ValueError, match="text needs a tokenizer"):
        TextData(["a"]).setup()
    with pytest.raises(ValueError, match="has no BOS token"):
        TextData(["a"], None, tokenizer(bos=None), bos=True).setup()
    with pytest.raises(ValueError, match="no EOS token"):
        TextData(["a", "b"], None, tokenizer(eos=None)).setup()
    with pytest.raises(ValueError, match=r"validation=1\.5"):
        TextData(["a"], 1.5)
    with pytest.raises(ValueError, match="block_size must be at least 2"):
        TextData(["a"], block_size=1)


def test_the_end_of_a_single_text_is_held_out(tmp_path):
    data = TextData(["abcdefghi"], 0.3, tokenizer(), block_size=8)
    data.setup()
    assert data.train_rows.columns["input_ids"].tolist() == [[BOS, *ids("abcdefg")]]
    assert data.val_rows.columns["input_ids"].tolist() == [[BOS, *ids("hi"), EOS]]


def test_random_documents_are_held_out():
    documents = [Tokens([i], [True], [False]) for i in range(20)]
    train, held_out = hold_out(documents, 0.25, seed=0)
    assert (len(train), len(held_out)) == (15, 5)
    assert sorted(train + held_out) == documents
    assert held_out == hold_out(documents, 0.25, seed=0)[1]
    assert held_out not in (documents[-5:], hold_out(documents, 0.25, seed=1)[1])
    with pytest.raises(ValueError, match=r"0\.01 of 20 documents"):
        hold_out(documents, 0.01, seed=0)


def test_separate_validation_and_none():
    data = TextData(["ab"], ["cd"], tokenizer(), block_size=8)
    data.setup("fit")
    data.setup("validate")
    (batch,) = data.val_dataloader()
    assert batch["input_ids"].tolist() == [[BOS, *ids("cd"), EOS]]
    assert len(data.train_dataloader()) == 1
    data = TextData(["ab"], None, tokenizer())
    data.setup()
    assert data.val_dataloader() == []
