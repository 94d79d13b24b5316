import base64

import pytest
import torch

from circuitkeep.capture import Sites, attach
from circuitkeep.circuits import Head
from circuitkeep.pages import attention
from circuitkeep.probes import RepeatedTokens, Templates
from circuitkeep.probing import probe_context
from circuitkeep.scan import examples
from circuitkeep.scan.examples import take_examples

PROBE = RepeatedTokens(length=16, segment=(4, 6), prefix=(0, 3))


@pytest.fixture
def backend(tiny_model):
    return attach(tiny_model("llama"))


def unpacked(example, layers=2, heads=4):
    """What the page's script makes of the packed patterns: (layer, head, query, key) -> share."""
    content = base64.b64decode(example.packed())
    length = len(example.tokens)
    pairs = length * (length + 1) // 2
    assert len(content) == layers * heads * pairs
    values = {}
    for layer in range(layers):
        for head in range(heads):
            for query in range(length):
                for key in range(query + 1):
                    place = (layer * heads + head) * pairs + query * (query + 1) // 2 + key
                    values[layer, head, query, key] = content[place] / 255
    return values


def whole_patterns(backend, batch, row):
    """Attention of all heads on a row of a batch, the whole row in one pass."""
    heads = tuple(Head(layer, i) for layer in range(backend.n_layers) for i in range(4))
    with torch.no_grad(), backend.capture(Sites(pattern=heads)) as captured:
        backend.forward(batch.tokens[row : row + 1])
    return captured.pattern[0].unflatten(0, (backend.n_layers, 4))


def held_out(backend, probe, rows=16, tokenizer=None):
    return probe.batch(probe_context(backend, tokenizer), "held_out", rows, 10_000)


def test_packed_patterns_are_what_was_captured(backend):
    found = take_examples(backend, None, PROBE, ["induction"])
    assert len(found.prompts) == found.asked == 4
    assert found.left_out is None
    batch = held_out(backend, PROBE)
    for row, example in enumerate(found.prompts):
        expected = whole_patterns(backend, batch, row)
        assert (example.start, example.length) == (0, 16)
        for place, value in unpacked(example).items():
            assert value == pytest.approx(expected[place].item(), abs=0.5 / 255 + 1e-6)


def test_tokens_targets_and_answers_are_the_rows_own(backend):
    found = take_examples(backend, None, PROBE, ["induction", "previous-token"])
    batch = held_out(backend, PROBE)
    for row, example in enumerate(found.prompts):
        assert example.tokens == tuple(str(int(token)) for token in batch.tokens[row])
        assert set(example.targets) == {"induction", "previous-token"}
        for role, pairs in example.targets.items():
            labelled = torch.zeros(16, 16, dtype=torch.bool)
            for query, key in pairs:
                labelled[query, key] = True
            assert torch.equal(labelled, batch.targets[role][row])
        own = batch.answer_row == row
        assert [one.position for one in example.answers] == batch.answer_position[own].tolist()
        assert [one.token for one in example.answers] == [str(int(a)) for a in batch.answer[own]]
        assert {one.distractor for one in example.answers} == {None}


def test_both_backends_show_the_same(tiny_model, as_bridge):
    model = tiny_model("gpt2")
    plain = take_examples(attach(model), None, PROBE, prompts=1)
    bridged = take_examples(attach(as_bridge(model)), None, PROBE, prompts=1)
    assert plain.prompts[0].tokens == bridged.prompts[0].tokens
    one, other = (each.prompts[0].patterns.int() for each in (plain, bridged))
    assert (one - other).abs().max() <= 1
    assert one.max() > 100


def test_prompts_are_of_different_templates(backend, word_tokenizer):
    def templates(*words):
        return [f"{word} {{A}} {word} {{A}}" for word in words]

    probe = Templates(
        templates=templates("w1", "w2"),
        fillers={"A": [f"w{number}" for number in range(10, 30)]},
        answer="A",
        targets={"copy": {"from": "end", "to": "A"}},
        held_out={"templates": templates("w3", "w4", "w5", "w6")},
    )
    found = take_examples(backend, word_tokenizer, probe)
    assert {prompt.tokens[1] for prompt in found.prompts} == {"w3", "w4", "w5", "w6"}
    for prompt in found.prompts:
        assert prompt.tokens[0] == "<s>"
        (answer,) = prompt.answers
        assert (answer.position, answer.token) == (3, prompt.tokens[2])
        assert prompt.targets["copy"] == ((3, 2),)


def test_distractors_are_named(backend, word_tokenizer):
    names = [f"w{number}" for number in range(10, 30)]
    probe = Templates(
        templates=["w1 {A} w2 {B} w3 {A}", "w2 {A} w2 {B} w3 {A}", "w4 {A} w2 {B} w3 {A}"],
        fillers={"A": names, "B": "A"},
        answer="A",
        distractor="B",
        targets={"mover": {"from": "end", "to": "A"}},
    )
    for prompt in take_examples(backend, word_tokenizer, probe, prompts=2).prompts:
        (answer,) = prompt.answers
        assert answer.token == prompt.tokens[2]
        assert answer.distractor == prompt.tokens[4]


def test_several_passes_give_the_same(backend, monkeypatch):
    once = take_examples(backend, None, PROBE, prompts=2)
    monkeypatch.setattr(attention, "CAPTURED_BYTES", 1)
    again = take_examples(backend, None, PROBE, prompts=2)
    for one, other in zip(once.prompts, again.prompts, strict=True):
        assert torch.equal(one.patterns, other.patterns)


def test_few_bytes_mean_fewer_and_shorter_prompts(backend, monkeypatch):
    monkeypatch.setattr(examples, "ENOUGH", 12)
    # 8 heads: two prompts of 12 tokens take 2 * 8 * 78 bytes, three would not fit.
    monkeypatch.setattr(examples, "PACKED_BYTES", 3 * 8 * 78 - 1)
    found = take_examples(backend, None, PROBE)
    assert [len(prompt.tokens) for prompt in found.prompts] == [14, 14]
    assert sum(prompt.patterns.numel() for prompt in found.prompts) <= 3 * 8 * 78 - 1
    assert found.left_out == (
        "2 of 4 prompts are shown and prompts of up to 16 tokens are cut to 14, to keep the page "
        "small."
    )
    monkeypatch.setattr(examples, "PACKED_BYTES", 1)
    (prompt,) = take_examples(backend, None, PROBE).prompts
    assert len(prompt.tokens) == 1


def test_a_cut_prompt_keeps_its_labels(backend, monkeypatch):
    """A long random prefix says nothing, so the part behind it is shown."""
    probe = RepeatedTokens(length=24, segment=(4, 4), prefix=(12, 12))
    monkeypatch.setattr(examples, "LONGEST", 10)
    roles = ["duplicate-token", "induction"]
    found = take_examples(backend, None, probe, roles, prompts=2)
    batch = held_out(backend, probe, rows=8)
    for row, example in enumerate(found.prompts):
        first = example.start
        assert first >= 13
        assert len(example.tokens) == 10
        window = slice(first, first + 10)
        assert example.tokens == tuple(str(int(token)) for token in batch.tokens[row, window])
        expected = whole_patterns(backend, batch, row)[:, :, window, window]
        for place, value in unpacked(example).items():
            assert value == pytest.approx(expected[place].item(), abs=0.5 / 255 + 1e-6)
        for role in roles:
            labelled = batch.targets[role][row, window, window].nonzero().tolist()
            assert example.targets[role] == tuple(map(tuple, labelled))
        own = batch.answer_position[batch.answer_row == row]
        inside = [int(p) - first for p in own if first <= p < first + 10]
        assert [one.position for one in example.answers] == inside


def test_the_first_tokens_are_kept_where_they_hold_half_of_the_labels(backend, monkeypatch):
    monkeypatch.setattr(examples, "LONGEST", 12)
    for prompt in take_examples(backend, None, PROBE, ["previous-token"]).prompts:
        assert (prompt.start, len(prompt.tokens), prompt.length) == (0, 12, 16)


def test_mistakes_are_refused(backend):
    with pytest.raises(ValueError, match="at least one prompt"):
        take_examples(backend, None, PROBE, prompts=0)
    with pytest.raises(ValueError, match="did you mean 'induction'"):
        take_examples(backend, None, PROBE, ["inducton"])
