import pytest
import torch

from circuitkeep.probes import Mixture, OwnSamples, RepeatedTokens


@pytest.fixture
def probes():
    return [RepeatedTokens(length=24), OwnSamples(length=12, aliases={"name-mover": "copy"})]


def test_rows_are_those_of_the_members_interleaved(token_context, probes, sound):
    batch = Mixture(probes, [3, 1]).batch(token_context, "train", 16, 0)
    sound(batch)
    repeated = probes[0].batch(token_context, "train", 12, 0)
    samples = probes[1].batch(token_context, "train", 4, 0)
    own = batch.mask.sum(dim=1) == 12
    assert torch.equal(batch.tokens[~own], repeated.tokens)
    assert torch.equal(batch.tokens[own, :12], samples.tokens)
    assert not batch.mask[own, 12:].any()
    for stretch in own.split(4):
        assert stretch.sum() == 1
    assert len(batch.answer) == len(repeated.answer) + len(samples.answer)
    assert torch.equal(batch.targets["induction"][~own], repeated.targets["induction"])
    assert torch.equal(batch.targets["name-mover"][own, :12, :12], samples.targets["name-mover"])
    assert not batch.targets["name-mover"][~own].any()


def test_corrupted_rows_are_kept_if_all_have_them(token_context, probes, sound):
    assert Mixture(probes).batch(token_context, "train", 4, 0).corrupted is None
    mixture = Mixture([RepeatedTokens(length=24), RepeatedTokens(length=40)], [1, 2])
    batch = mixture.batch(token_context, "train", 9, 0)
    sound(batch)
    for row, answer in zip(batch.answer_row.tolist(), batch.answer.tolist(), strict=True):
        assert answer not in batch.corrupted.tokens[row].tolist()


def test_labels_and_behaviours(probes):
    mixture = Mixture(probes)
    assert mixture.labels == (
        *("previous-token", "duplicate-token", "induction", "copy", "name-mover"),
    )
    assert mixture.behaviours == ("accuracy",)
    assert Mixture(probes[:1]).behaviours == ("accuracy", "advantage_nats")


def test_same_arguments_same_rows(token_context, probes, same):
    mixture = Mixture(probes, [1, 2])
    one = mixture.batch(token_context, "held_out", 7, 4)
    same(one, mixture.batch(token_context, "held_out", 7, 4))


def test_errors(token_context, probes):
    with pytest.raises(ValueError, match="1 rows are too few"):
        Mixture(probes).batch(token_context, "train", 1, 0)
    with pytest.raises(ValueError, match=r"one positive share per probe \(2\), got \[1.0\]"):
        Mixture(probes, [1])
    with pytest.raises(ValueError, match="one positive share"):
        Mixture(probes, [1, 0])
    with pytest.raises(ValueError, match="at least one probe"):
        Mixture([])
