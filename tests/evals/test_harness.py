import json
import logging
import math
import random
import sys

import numpy as np
import pytest
import torch
from tqdm import tqdm

from circuitkeep.cli.surroundings import config_directory
from circuitkeep.evals.harness import Harness, _seeded, figures
from circuitkeep.evals.harness_quiet import quiet

CHOICES = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: rows.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{text}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{right}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
GENERATED = """
task: words_written
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{written}}"
generation_kwargs: {until: ["</s>"], max_gen_toks: 3, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """
task: words_rolling
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}]
"""
ROWS = [
    {
        "text": " ".join(f"w{(7 * row + 3 * place) % 32}" for place in range(6)),
        "choices": [f"w{(5 * row + k) % 32} w{(11 * row + 2 * k) % 32}" for k in range(3)],
        "right": row % 3,
        "written": "",
    }
    for row in range(10)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("tasks")
    (found / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (found / "choices.yaml").write_text(CHOICES.format(name="words_chosen"))
    (found / "generated.yaml").write_text(GENERATED)
    (found / "rolling.yaml").write_text(ROLLING)
    for name in ("one", "two"):
        (found / f"{name}.yaml").write_text(CHOICES.format(name=f"words_{name}") + "tag: words\n")
    (found / "missing.yaml").write_text(
        CHOICES.format(name="words_missing").replace("path: json", "path: nobody/nothing")
    )
    return found


@pytest.fixture(scope="module", autouse=True)
def few_tasks():
    """The tasks that come with lm-evaluation-harness are thousands of files; a test reads them."""
    with pytest.MonkeyPatch.context() as patch:
        from lm_eval.tasks import TaskManager

        whole = TaskManager.__init__
        patch.setattr(
            TaskManager,
            "__init__",
            lambda self, **given: whole(self, **{**given, "include_defaults": False}),
        )
        yield


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


def encoded(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def log_likelihood(model, tokenizer, context, continuation):
    """By one forward pass of its own, token by token."""
    before, after = encoded(tokenizer, context), encoded(tokenizer, continuation)
    with torch.no_grad():
        log_probs = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    places = range(len(before), len(before) + len(after))
    return sum(log_probs[place - 1, (before + after)[place]].item() for place in places)


def test_choices_against_a_loop(model, word_tokenizer, folder):
    found = Harness(["words_chosen"], str(folder), batch_size=4).evaluate(model, word_tokenizer)
    hits = []
    for row in ROWS:
        scores = [
            log_likelihood(model, word_tokenizer, row["text"], f" {choice}")
            for choice in row["choices"]
        ]
        hits.append(float(np.argmax(scores) == row["right"]))
    assert 0 < np.mean(hits) < 1
    error = np.std(hits, ddof=1) / math.sqrt(len(hits))
    assert found == {"words_chosen": {"acc": np.mean(hits), "acc_stderr": pytest.approx(error)}}


def test_rolling_against_a_loop(model, word_tokenizer, folder):
    found = Harness("words_rolling", str(folder)).evaluate(model, word_tokenizer)
    nats = [-log_likelihood(model, word_tokenizer, "<s>", row["text"]) for row in ROWS]
    expected = math.exp(sum(nats) / sum(len(row["text"].split()) for row in ROWS))
    assert found["words_rolling"]["word_perplexity"] == pytest.approx(expected, rel=1e-5)


def test_generation_against_a_loop(model, word_tokenizer, folder, tmp_path):
    rows = []
    for row in ROWS[:4]:
        tokens = encoded(word_tokenizer, row["text"])
        for _ in range(3):
            with torch.no_grad():
                tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
        written = word_tokenizer.decode(tokens[6:], skip_special_tokens=True)
        rows.append({"text": row["text"], "written": written})
    rows.append({"text": ROWS[4]["text"], "written": "what it does not write"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "generated.yaml").write_text(GENERATED)
    found = Harness("words_written", str(tmp_path)).evaluate(model, word_tokenizer)
    assert found["words_written"]["exact_match"] == pytest.approx(0.8)


def test_a_bridge_answers_as_its_model(model, word_tokenizer, folder, as_bridge):
    harness = Harness(["words_chosen", "words_rolling"], str(folder))
    bridge = as_bridge(model)
    found = harness.evaluate(bridge, word_tokenizer)
    own = harness.evaluate(model, word_tokenizer)
    assert found["words_chosen"] == own["words_chosen"]
    assert found["words_rolling"] == pytest.approx(own["words_rolling"], rel=1e-4)


def test_nothing_is_disturbed(tiny_model, word_tokenizer, folder):
    model = tiny_model("llama", attention_dropout=0.5).train()
    model.lm_head.eval()
    flags = {name: module.training for name, module in model.named_modules()}
    pad = word_tokenizer.pad_token
    word_tokenizer.pad_token = None
    size = len(word_tokenizer)
    states = np.random.get_state(), torch.get_rng_state()
    try:
        harness = Harness(["words_chosen"], str(folder))
        first = harness.evaluate(model, word_tokenizer)
        assert word_tokenizer.pad_token is None
        assert len(word_tokenizer) == size
    finally:
        word_tokenizer.pad_token = pad
    assert all(map(np.array_equal, np.random.get_state(), states[0]))
    assert torch.equal(torch.get_rng_state(), states[1])
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert harness.evaluate(model, word_tokenizer) == first  # dropout would show


def test_random_states_are_put_back():
    # Apart, because beartype draws from Python's own.
    drawn = []
    for inside in (False, True):
        random.seed(5)
        np.random.seed(5)
        torch.manual_seed(5)
        if inside:
            with _seeded():
                once = random.random(), np.random.rand(), torch.rand(1)
            with _seeded():
                assert (random.random(), np.random.rand(), torch.rand(1)) == once
        drawn.append((random.random(), np.random.rand(), torch.rand(1)))
    assert drawn[0] == drawn[1]


def test_examples_are_the_same_every_time(model, word_tokenizer, tmp_path):
    """Drawn anew from where the last evaluation's ended, they would differ."""
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    shots = CHOICES.format(name="words_shown") + "fewshot_split: test\n"
    (tmp_path / "choices.yaml").write_text(shots)
    asked = []
    hook = model.register_forward_hook(
        lambda *given: asked.append(given[-2].get("input_ids").tolist()), with_kwargs=True
    )
    harness = Harness("words_shown", str(tmp_path), num_fewshot=1, limit=2)
    harness.evaluate(model, word_tokenizer)
    half = len(asked)
    harness.evaluate(model, word_tokenizer)
    hook.remove()
    assert asked[:half] == asked[half:]
    # The question and its answer take 7 or 8 tokens; an example stands before it.
    assert len(asked[0][0]) > 12


def test_limit(model, word_tokenizer, folder):
    found = Harness("words_chosen", str(folder), limit=1).evaluate(model, word_tokenizer)
    assert "acc_stderr" not in found["words_chosen"]  # of one row there is none


def test_a_tag_is_its_tasks(model, word_tokenizer, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    for name in ("one", "two"):
        text = CHOICES.format(name=f"words_{name}").replace("rows.jsonl", str(rows))
        (tmp_path / f"{name}.yaml").write_text(text + "tag: words\n")
    found = Harness("words", str(tmp_path)).evaluate(model, word_tokenizer)
    assert set(found) == {"words_one", "words_two"}


def test_answers_are_kept_by_checkpoint(tiny_model, word_tokenizer, folder, tmp_path):
    passes = []

    def counted(model):
        model.register_forward_pre_hook(lambda *_: passes.append(1))
        return model

    harness = Harness(["words_chosen"], str(folder), cache_dir=str(tmp_path))
    first = harness.evaluate(counted(tiny_model("llama")), word_tokenizer, keep=True)
    asked = len(passes)
    assert asked > 0
    again = Harness(["words_chosen"], str(folder), cache_dir=str(tmp_path))
    assert again.evaluate(counted(tiny_model("llama")), word_tokenizer, keep=True) == first
    assert len(passes) == asked, "the same weights were asked again"
    # Questions that were not asked before are asked, and no others.
    more = Harness(["words_chosen", "words_rolling"], str(folder), cache_dir=str(tmp_path))
    found = more.evaluate(counted(tiny_model("llama")), word_tokenizer, keep=True)
    assert found["words_chosen"] == first["words_chosen"]
    assert len(passes) > asked
    asked = len(passes)
    # Another checkpoint reads none of them; nor is anything read unless it is asked for.
    other = counted(tiny_model("llama", seed=1))
    kept = harness.evaluate(other, word_tokenizer, keep=True)
    assert len(passes) > asked
    assert kept == harness.evaluate(other, word_tokenizer)
    asked = len(passes)
    harness.evaluate(other, word_tokenizer)
    assert len(passes) > asked
    assert len(list(tmp_path.glob("*.sqlite"))) == 2


def test_the_shipped_task(tiny_model, word_tokenizer):
    folder = config_directory() / "lm_eval"
    rows = [json.loads(line) for line in (folder / "story_names.jsonl").read_text().splitlines()]
    assert len({row["story"] + str(row["names"]) for row in rows}) == len(rows) == 40
    for row in rows:
        assert row["names"][row["right"]] in row["story"]
        assert row["names"][1 - row["right"]] not in row["story"]
    model = tiny_model("llama", max_position_embeddings=64)
    found = Harness("story_names", str(folder)).evaluate(model, word_tokenizer)
    assert set(found["story_names"]) == {"acc", "acc_stderr"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": "words_chose"}, "there is no task 'words_chose'; did you mean 'words_chosen'"),
        ({"tasks": "xyzzy"}, "there is no task 'xyzzy'; `lm-eval ls tasks` lists them"),
        ({"tasks": "words_missing"}, "the task 'words_missing' cannot be loaded .*nobody/nothing"),
        ({"include_path": "/nowhere"}, "include_path: there is no folder /nowhere"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"limit": 0}, "limit must be above 0, or null; got 0"),
        ({"num_fewshot": -1}, "num_fewshot must be at least 0, got -1"),
    ],
)
def test_mistakes(settings, message, folder, word_tokenizer):
    with pytest.raises(ValueError, match=message):
        Harness(**{"tasks": "words_chosen", "include_path": str(folder), **settings}).prepare(
            word_tokenizer
        )


def test_no_tokenizer(folder, word_tokenizer):
    with pytest.raises(ValueError, match="the model has no tokenizer; name one by"):
        Harness("words_chosen", str(folder)).prepare(None)
    eos = word_tokenizer.eos_token
    word_tokenizer.eos_token = None
    try:
        Harness("words_chosen", str(folder)).prepare(word_tokenizer)
        with pytest.raises(ValueError, match="'words_written' needs a tokenizer with an EOS token"):
            Harness("words_written", str(folder)).prepare(word_tokenizer)
    finally:
        word_tokenizer.eos_token = eos


def test_the_extra_is_missing(monkeypatch, word_tokenizer):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'circuitkeep\[lm-eval\]'"):
        Harness("words_chosen").prepare(word_tokenizer)


def test_prompts_that_do_not_fit_are_told_of_once(tiny_model, word_tokenizer, folder):
    model = tiny_model("llama", max_position_embeddings=4)
    with pytest.warns(UserWarning, match=r"exceeds model's maximum length.* more like it") as told:
        Harness("words_chosen", str(folder)).evaluate(model, word_tokenizer)
    assert len(told) == 1


def test_figures_of_groups_and_filters():
    results = {
        "results": {
            "all": {"name": "all", "acc,none": np.float32(0.5), "acc_stderr,none": 0.1},
            "part": {"alias": "part", "acc,none": 0.5, "acc_stderr,none": "N/A"},
            "maths": {"exact_match,strict": 1, "exact_match_stderr,strict": 0.25, "sample_len": 3},
        },
        "group_subtasks": {"all": ["part"], "without figures": ["maths"]},
    }
    assert figures(results) == {
        "all": {"acc": 0.5, "acc_stderr": 0.1},
        "maths": {"exact_match_strict": 1.0, "exact_match_strict_stderr": 0.25},
    }


def test_quiet(capfd, monkeypatch):
    monkeypatch.delenv("DISABLE_MULTIPROC", raising=False)
    logger = logging.getLogger("lm_eval.somewhere")
    before = tqdm.__init__

    def work():
        with quiet():
            print("bootstrapping")
            list(tqdm(range(3), disable=False))
            for number in range(3):
                logger.warning("cut by %d tokens", number)
            logger.warning("`pretrained` model kwarg is not of type `str`.")

    with pytest.warns(UserWarning, match=r"harness: cut by 0 .* \(2 more like it\)$"):
        work()
    assert tqdm.__init__ is before
    assert logging.getLogger("lm_eval").propagate
    list(tqdm(range(3)))
    shown = capfd.readouterr()
    assert shown.out == ""
    assert shown.err.count("3/3") == 1
