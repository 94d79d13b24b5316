"""Prompts of the user's: what is refused, which heads are shown, and the patterns themselves."""

import base64
import csv
import io
import json

import pytest
import torch

from circuitkeep.capture import Sites, attach
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.compare import prompts
from circuitkeep.compare.attention import attention_chart, filled_chart, page_data, to_csv
from circuitkeep.compare.prompts import chosen_heads, pattern_of, read_prompt

CIRCUIT = Circuit(
    "ind", (Role("induction", (Head(1, 2), Head(1, 0))),), {"_target_": "x"}, "accuracy", "a test"
)


@pytest.fixture
def backend(tiny_model):
    return attach(tiny_model("llama"))


def test_token_numbers_where_there_is_no_tokenizer():
    assert read_prompt(None, " 0 5, 9\n5 ").tolist() == [[0, 5, 9, 5]]


def test_text_is_what_the_tokenizer_makes_of_it(word_tokenizer):
    assert read_prompt(word_tokenizer, "w3 w5").tolist() == [word_tokenizer("w3 w5")["input_ids"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a prompt is empty"),
        (" \n", "a prompt is empty"),
        ("5 x", "'5 x': the base model has no tokenizer, so write token numbers"),
        ("5 " * 129, "has 129 tokens, and at most 128 can be shown; shorten it"),
    ],
)
def test_what_is_no_prompt_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_prompt(None, text)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([3] * 25, "has 25 tokens, and the model's context is 24"),
        ([3, 36], "the token 36, and the model's tokens run from 0 to 35"),
    ],
)
def test_what_does_not_fit_the_model_is_refused(tiny_model, tokens, message):
    with pytest.raises(ValueError, match=message):
        chosen_heads(attach(tiny_model("gpt2")), [CIRCUIT], [torch.tensor([tokens])], 2)


def test_all_heads_or_else_the_named_ones(backend, monkeypatch):
    tokens = [torch.tensor([[3, 5, 9, 5]])]
    assert len(chosen_heads(backend, [CIRCUIT], tokens, 3)) == 8
    monkeypatch.setattr(prompts, "PAGE_BYTES", 8 * 10 * 3 - 1)
    assert chosen_heads(backend, [CIRCUIT], tokens, 3) == (Head(1, 0), Head(1, 2))
    monkeypatch.setattr(prompts, "PAGE_BYTES", 2 * 10 * 3 - 1)
    with pytest.raises(ValueError, match="too much for a page with 2 heads and 3 models"):
        chosen_heads(backend, [CIRCUIT], tokens, 3)


def test_patterns_are_what_the_model_attends_to(backend):
    tokens = torch.tensor([[3, 5, 9, 5, 9]])
    heads = (Head(1, 2), Head(0, 1))
    found = pattern_of(backend, tokens, heads)
    with torch.no_grad(), backend.capture(Sites(pattern=heads)) as captured:
        backend.forward(tokens)
    for head in range(2):
        for query in range(5):
            for key in range(query + 1):
                share = found[head, query * (query + 1) // 2 + key].item() / 255
                assert share == pytest.approx(
                    captured.pattern[0, head, query, key].item(), abs=0.5 / 255 + 1e-6
                )


def test_the_page_gets_every_head_and_json_and_csv_the_named(everything):
    (prompt,) = everything.prompts
    data = page_data(everything)
    assert data["models"] == ["base", "unregularized", "patterns-only", "regularized"]
    packed = base64.b64decode(data["prompts"][0]["patterns"][2])
    assert list(packed) == prompt.patterns[2].flatten().tolist()
    written = json.loads(everything.to_json())["prompts"][0]
    assert written["tokens"] == list(prompt.tokens)
    rows = written["patterns"]["patterns-only"]
    assert list(rows) == ["L0H2", "L1H0", "L1H3"]
    assert [len(row) for row in rows["L1H3"]] == [1, 2, 3, 4, 5]
    assert rows["L1H3"][2][1] == pytest.approx(prompt.patterns[2][7, 4].item() / 255, abs=5e-4)
    lines = list(csv.DictReader(io.StringIO(to_csv(everything))))
    (line,) = (
        line
        for line in lines
        if (line["checkpoint"], line["head"], line["query"], line["key"])
        == ("patterns-only", "L1H3", "2", "1")
    )
    assert (line["query_token"], line["key_token"]) == ("a&b", "␣<b>")
    assert float(line["attention"]) == rows["L1H3"][2][1]


def test_a_report_without_prompts_has_no_patterns(report):
    assert page_data(report) is None
    assert json.loads(report.to_json())["prompts"] == []


def test_tokens_are_written_where_there_is_room():
    chart = attention_chart(("<s>", "a-very-long-token"))
    assert chart["layout"]["xaxis"]["ticktext"] == ["&lt;s&gt;", "a-very-l…"]
    many = attention_chart(tuple("abcd" * 20))
    assert many["layout"]["yaxis"]["ticktext"] == [str(n) for n in range(0, 80, 10)]


def test_a_difference_is_about_0(everything):
    (prompt,) = everything.prompts
    (cells,) = filled_chart(prompt, "L1H0", 3, 0)["data"]
    now, before = (prompt.patterns[model][4, 4].item() / 255 for model in (3, 0))
    assert cells["z"][2][1] == pytest.approx(now - before, abs=2e-3)
    assert cells["z"][2][3] is None
    assert cells["zmin"] == -cells["zmax"]
