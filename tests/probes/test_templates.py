from dataclasses import replace

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from circuitkeep.probes import ProbeContext, Templates, build_probe

NAMES = ["Lily", "Tim", "Ben", "Zebulon", "Quincy", "Xavier", "Sam", "Tom"]


def name_copying(**changes):
    settings = {
        "templates": [
            " There was a child named {name}. {name} liked to play. One day, {name}",
            " Then {name} went to the park. One day, {name}",
            " {name} liked a ball. Then {name}",
        ],
        "fillers": {"name": NAMES},
        "answer": "name",
        "targets": {"name-mover": {"from": "answer", "to": "name"}},
    }
    return Templates(**settings | changes)


def ioi(**changes):
    settings = {
        "templates": [
            " Then {A} and {B} went to the park. {B} gave a ball to {A}",
            " Then {B} and {A} went to play. {B} gave a ball to {A}",
        ],
        "fillers": {"A": NAMES, "B": "A"},
        "answer": "A",
        "distractor": "B",
        "targets": {
            "name-mover": {"from": "end", "to": "A"},
            "s-inhibition": {"from": "end", "to": "B#1"},
            "duplicate-token": {"from": "B#1", "to": "B#0"},
            "induction": {"from": "B#1", "to": "B#0+1"},
            "previous-token": {"from": "B#0+1", "to": "B#0"},
        },
    }
    return Templates(**settings | changes)


def texts(batch, context):
    return [
        context.tokenizer.decode(row[mask][1:])
        for row, mask in zip(batch.tokens, batch.mask, strict=True)
    ]


def answers(batch, row):
    return batch.answer[batch.answer_row == row]


def held_out_words(probe):
    return {row[0] for row in probe._fillers._rows["name"]["held_out"]}


def test_prompts_read_as_written_and_end_in_the_answer(text_context, sound):
    batch = name_copying().batch(text_context, "train", 24, 0)
    sound(batch)
    assert (batch.tokens[:, 0] == text_context.bos_token_id).all()
    lengths = set()
    for row, text in enumerate(texts(batch, text_context)):
        name = text.split()[-1]
        assert name in NAMES
        assert text_context.tokenizer.decode(answers(batch, row)).strip() == name
        lengths.add(len(answers(batch, row)))
    assert 1 in lengths
    assert max(lengths) > 2, "some names must have several tokens for this to test them"


def test_answer_token_j_attends_to_token_j_of_each_earlier_occurrence(text_context):
    batch = name_copying().batch(text_context, "train", 24, 0)
    for row, text in enumerate(texts(batch, text_context)):
        asked = batch.answer_row == row
        target = batch.targets["name-mover"][row]
        assert torch.equal(target.any(dim=1).nonzero()[:, 0], batch.answer_position[asked])
        earlier = text.count(text.split()[-1]) - 1
        for query, token in zip(batch.answer_position[asked], batch.answer[asked], strict=True):
            keys = target[query].nonzero()[:, 0]
            assert len(keys) == earlier
            assert (batch.tokens[row, keys] == token).all()


def test_align_span_attends_to_the_whole_filler(text_context):
    roles = {"name-mover": {"from": "answer", "to": "name#0", "align": "span"}}
    batch = name_copying(targets=roles).batch(text_context, "train", 12, 0)
    for row in range(12):
        tokens = len(answers(batch, row))
        assert batch.targets["name-mover"][row].sum() == tokens**2


def test_corrupted_prompts_hold_another_name_and_the_same_answer(text_context):
    batch = name_copying().batch(text_context, "train", 24, 2)
    clean, corrupted = texts(batch, text_context), texts(batch.corrupted, text_context)
    for one, other in zip(clean, corrupted, strict=True):
        name = one.split()[-1]
        assert other.split()[-1] == name
        assert other.count(name) == 1
        rival = next(n for n in NAMES if n in other and n != name)
        assert other == one.rsplit(name, 1)[0].replace(name, rival) + name
    assert batch.corrupted.targets == {}


def test_ioi_roles_and_distractor(text_context, sound):
    batch = ioi(held_out_axes="templates").batch(text_context, "train", 30, 0)
    sound(batch)
    assert len(batch.answer) == 30, "one answer per prompt where there is a distractor"
    for row, text in enumerate(texts(batch, text_context)):
        words = text.replace(".", " ").split()
        right = words[-1]
        wrong = next(w for w in words if w in NAMES and w != right)
        assert text.count(wrong) == 2
        tokenizer = text_context.tokenizer
        one = tokenizer(f" {right}", add_special_tokens=False)["input_ids"]
        other = tokenizer(f" {wrong}", add_special_tokens=False)["input_ids"]
        at = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
        assert (int(batch.answer[row]), int(batch.distractor[row])) == (one[at], other[at])

        # A blank token before a name is not part of it.
        one, other = ([t for t in ids if tokenizer.decode(t).strip()] for ids in (one, other))
        span = len(other)
        end = len(tokenizer(text, add_special_tokens=False)["input_ids"]) - len(one)
        inhibition = batch.targets["s-inhibition"][row].nonzero()
        assert inhibition[:, 0].unique().tolist() == [end]
        assert batch.tokens[row, inhibition[:, 1]].tolist() == other
        second = inhibition[:, 1].tolist()
        duplicate = batch.targets["duplicate-token"][row].nonzero()
        assert duplicate[:, 0].tolist() == second
        assert batch.tokens[row, duplicate[:, 1]].tolist() == other
        first = duplicate[:, 1].tolist()
        pairs = batch.targets["previous-token"][row].nonzero().tolist()
        assert pairs == [[k + 1, k] for k in first]
        assert batch.targets["induction"][row].nonzero().tolist() == [
            [second[i], first[i] + 1] for i in range(span)
        ]
        mover = batch.targets["name-mover"][row].nonzero().tolist()
        assert len(mover) == 1
        assert mover[0][0] == end
        assert batch.tokens[row, mover[0][1]] == one[0]


def test_ioi_corrupted_prompts_hold_neither_the_answer_nor_a_mere_swap(text_context):
    batch = ioi(held_out_axes="templates").batch(text_context, "train", 20, 1)
    clean, corrupted = texts(batch, text_context), texts(batch.corrupted, text_context)
    for one, other in zip(clean, corrupted, strict=True):
        assert other.count(one.split()[-1]) == 1
        assert len({name for name in NAMES if name in other}) == 3


def test_agreement_draws_words_together(text_context, sound):
    probe = Templates(
        templates=[" The {noun} {verb}", " Then the {noun} {verb}"],
        fillers={
            "noun, verb, wrong": [
                ["boy", "runs", "run"],
                ["boys", "run", "runs"],
                ["girl", "runs", "run"],
                ["girls", "run", "runs"],
            ]
        },
        answer="verb",
        distractor="wrong",
        held_out={
            "fillers": {"noun, verb, wrong": [["dog", "runs", "run"], ["dogs", "run", "runs"]]}
        },
    )
    plural = {"boys": "run", "girls": "run", "dogs": "run"}
    for split in ("train", "held_out"):
        batch = probe.batch(text_context, split, 16, 0)
        sound(batch)
        for text in texts(batch, text_context):
            noun, verb = text.split()[-2:]
            assert verb == plural.get(noun, "runs")
            assert (noun in ("dog", "dogs")) == (split == "held_out")
        for text in texts(batch.corrupted, text_context):
            noun, verb = text.split()[-2:]
            assert verb != plural.get(noun, "runs")


def test_key_value_recall_draws_different_pairs(text_context):
    probe = Templates(
        templates=["{k}: {v}, {l}: {w}. {k}: {v}", "{l}: {w}, {k}: {v}. {k}: {v}"],
        fillers={"k": list("abcdefghijkl"), "l": "k", "v": NAMES, "w": "v"},
        answer="v",
        distractor="w",
        held_out_axes="templates",
    )
    batch = probe.batch(text_context, "train", 20, 0)
    for text in texts(batch, text_context):
        facts = dict(fact.split(": ") for fact in text.split(". ")[0].split(", "))
        key, value = text.split(". ")[1].split(": ")
        assert facts[key] == value
        assert len(set(facts.values())) == 2


def test_held_out_by_hash_is_disjoint_for_all_seeds(text_context):
    probe = name_copying()
    seen = {"train": set(), "held_out": set()}
    for split, found in seen.items():
        for seed in range(10):
            batch = probe.batch(text_context, split, 20, seed)
            for row, text in enumerate(texts(batch, text_context)):
                name = text_context.tokenizer.decode(answers(batch, row)).strip()
                found |= {name, text.replace(name, "*")}
            for text in texts(batch.corrupted, text_context):
                found |= {name for name in NAMES if name in text}
    assert not seen["train"] & seen["held_out"]
    assert len(seen["train"] | seen["held_out"]) == len(NAMES) + 3


def test_axes_hold_out_one_thing_at_a_time(text_context):
    probe = name_copying()
    words = held_out_words(probe)
    templates = set(probe._templates["held_out"])
    for axes in ("both", "templates", "fillers"):
        variant = replace(probe, held_out_axes=axes)
        batch = variant.batch(text_context, "held_out", 20, 0)
        for text in texts(batch, text_context):
            name = text.split()[-1]
            assert (name in words) == (axes != "templates")
            assert (text.replace(name, "{name}") in templates) == (axes != "fillers")
        for text in texts(variant.batch(text_context, "train", 20, 0), text_context):
            assert text.split()[-1] not in words


def test_explicit_held_out(text_context):
    held_out = {"templates": [" A dog met {name}. Then {name}"], "fillers": {"name": ["Ann", "Bo"]}}
    probe = name_copying(held_out=held_out)
    texts_held_out = texts(probe.batch(text_context, "held_out", 8, 0), text_context)
    assert {text.split()[-1] for text in texts_held_out} == {"Ann", "Bo"}
    assert all(text.startswith(" A dog met") for text in texts_held_out)
    train = texts(probe.batch(text_context, "train", 60, 0), text_context)
    assert {text.split()[-1] for text in train} == set(NAMES)


def test_same_arguments_same_prompts(text_context, same):
    one = name_copying().batch(text_context, "train", 8, 5)
    same(one, name_copying().batch(text_context, "train", 8, 5))
    other = name_copying().batch(text_context, "train", 8, 6)
    assert texts(one, text_context) != texts(other, text_context)


def test_blanks_before_and_without_bos(text_context, sound):
    context = replace(text_context, bos_token_id=None)
    sound(name_copying().batch(context, "train", 8, 0))
    with_blank = name_copying(
        templates=[" named{name}. One day,{name}", " then{name} and{name}"],
        fillers={"name": [f" {name}" for name in NAMES]},
    ).batch(text_context, "train", 8, 0)
    sound(with_blank)


def test_previous_occurrences_only(text_context):
    roles = {"duplicate": {"from": "name", "to": "name"}}
    template = " There was a child named {name}. {name} liked to play. One day, {name}"
    probe = name_copying(templates=[template], targets=roles, held_out_axes="fillers")
    batch = probe.batch(text_context, "train", 6, 0)
    for row in range(6):
        # occurrence 1 -> 0, occurrence 2 -> 0 and 1, token by token
        assert batch.targets["duplicate"][row].sum() == 3 * len(answers(batch, row))


def test_probe_from_yaml_mapping(text_context, same):
    spec = {
        "_target_": "circuitkeep.probes.Templates",
        "templates": list(name_copying().templates),
        "fillers": {"name": NAMES},
        "answer": "name",
        "targets": {"name-mover": {"from": "answer", "to": "name"}},
    }
    assert build_probe(spec) == name_copying()
    same(
        build_probe(spec).batch(text_context, "train", 4, 0),
        name_copying().batch(text_context, "train", 4, 0),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": "nmae"}, "answer 'nmae' has no fillers; did you mean 'name'"),
        ({"distractor": "name"}, "the distractor is the answer"),
        ({"templates": []}, "templates must be a list of texts"),
        ({"templates": " {name} {name}"}, "templates must be a list of texts"),
        ({"templates": ["{name} {name}"] * 2}, "stands twice"),
        ({"templates": ["{name} {name}"]}, "one template cannot be divided"),
        ({"templates": ["{name} {nam}", "a"]}, "'nam' of .* has no fillers; did you mean 'name'"),
        ({"templates": ["{name} {name}.", "a"]}, r"must end with '\{name\}'"),
        ({"templates": ["One {name}", "a"]}, "stands nowhere before"),
        ({"templates": ["{name {name}", "{name} {name}"]}, "has a brace"),
        ({"fillers": {"name": "Lily"}}, "name 'Lily', which lists no words"),
        ({"fillers": {"name": ["Lily", True]}}, "hold True, which is not text"),
        ({"fillers": {"name": ["Lily", "Lily"]}}, "hold 'Lily' twice"),
        ({"fillers": {"name": ["Lily", "Tim"]}}, "need at least 2 different entries"),
        ({"fillers": {"name": NAMES, "B": "name"}}, "no template holds the placeholder 'B'"),
        ({"fillers": {"name": NAMES, "B,name": [["a", "b"]]}}, "'name' has two lists"),
        ({"fillers": {"name": NAMES, "a,b": [["a"]]}}, "need 2 words per entry"),
        ({"fillers": {"name": NAMES, "a,b": "name"}}, "do not name as many placeholders"),
        ({"fillers": {"name": NAMES, "end": ["x", "y"]}}, "call the placeholder otherwise"),
        ({"held_out": {"filler": {}}}, "unknown key 'filler'; did you mean 'fillers'"),
        ({"held_out": {"fillers": {"nam": ["x"]}}}, "'nam' lists no words of its own"),
        ({"held_out": {"fillers": {"name": "Ann"}}}, "must be a list, got 'Ann'"),
        ({"held_out": {"fillers": {"name": ["Ann", "Tim"]}}}, "'Tim' of 'name' is in both splits"),
        (
            {"held_out": {"templates": [" {name} liked a ball. Then {name}"]}},
            "the template .* is in both splits",
        ),
        ({"held_out_axes": "template"}, "did you mean 'templates'"),
        ({"targets": {"x": {"from": "answer"}}}, "must be {from: place, to: place}"),
        ({"targets": {"x": {"from": "answer", "to": "name", "too": 1}}}, "unknown key 'too'"),
        ({"targets": {"x": {"from": "answer", "to": "nam"}}}, "no placeholder 'nam'; did you"),
        ({"targets": {"x": {"from": "answer", "to": "name#3"}}}, "counted from #0"),
        ({"targets": {"x": {"from": "answer#0", "to": "name"}}}, "is no place in a prompt"),
        ({"targets": {"x": {"from": "name", "to": "end"}}}, "must stand in the context"),
        ({"targets": {"x": {"from": "end", "to": "name", "align": "all"}}}, "'token' or 'span'"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        name_copying(**changes)


def test_roles_without_a_target_are_refused(text_context):
    probe = name_copying(targets={"x": {"from": "name#0", "to": "name"}})
    with pytest.raises(ValueError, match=r"role 'x': in .* no key of 'name' stands at or before"):
        probe.batch(text_context, "train", 4, 0)


def test_what_the_tokenizer_cannot_do_is_refused(text_context, tokenizer):
    probe = name_copying()
    with pytest.raises(ValueError, match="needs a tokenizer, and this context has none"):
        probe.batch(ProbeContext(64, 64, 0), "train", 2, 0)

    class Slow:
        is_fast = False

    with pytest.raises(ValueError, match="Slow does not; load the fast one"):
        probe.batch(replace(text_context, tokenizer=Slow()), "train", 2, 0)
    with pytest.raises(ValueError, match="tokens is longer than the model's context of 8"):
        probe.batch(replace(text_context, context_length=8), "train", 2, 0)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)


def test_answers_glued_to_the_text_before_are_refused(text_context):
    probe = name_copying(
        templates=[" Lily {name} big{name}"],
        fillers={"name": ["Lily", "Tim"]},
        held_out_axes="fillers",
        held_out={"fillers": {"name": ["Ann", "Bo"]}},
    )
    with pytest.raises(ValueError, match="the tokenizer joins ' big' and the answer"):
        probe.batch(text_context, "train", 20, 0)


def test_distractors_that_no_token_tells_apart_are_refused(text_context):
    probe = ioi(
        fillers={"A": ["Ti", "Tix", "T"], "B": "A"},
        held_out={"fillers": {"A": ["Ann", "Bo", "Cy"]}},
    )
    with pytest.raises(ValueError, match="no token tells them apart"):
        probe.batch(text_context, "train", 100, 0)
