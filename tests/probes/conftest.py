"""A small real tokenizer, trained on the spot: some names are one token, some are several."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from circuitkeep.probes import ProbeContext

CORPUS = [
    " There was a child named Lily. Lily liked to play. One day, Tim and Ben",
    " Then Lily and Tim went to the park. Ben gave a ball to Lily. bigLily bigLily",
    " The boy runs. The boys run. The girl runs. The girls run. Sam Tom Ben",
] * 20


@pytest.fixture(scope="session")
def tokenizer():
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    inner.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="session")
def text_context(tokenizer):
    return ProbeContext(
        vocab_size=len(tokenizer),
        context_length=128,
        bos_token_id=tokenizer.bos_token_id,
        special_token_ids=frozenset(tokenizer.all_special_ids),
        tokenizer=tokenizer,
    )


@pytest.fixture
def token_context():
    """A model without text: 64 tokens, BOS 0, one more special token."""

    def sample(rows, length, seed):
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(2, 12, (rows, length), generator=generator)
        tokens[:, 0] = 0
        return tokens

    return ProbeContext(64, 40, 0, frozenset({0, 63}), sample=sample)


def assert_equal_batches(one, other):
    """Every field of two batches, corrupted rows included."""
    assert (one is None) == (other is None)
    if one is None:
        return
    for name in ("tokens", "mask", "answer_row", "answer_position", "answer"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.targets.keys() == other.targets.keys()
    for role in one.targets:
        assert torch.equal(one.targets[role], other.targets[role]), role
    assert (one.distractor is None) == (other.distractor is None)
    if one.distractor is not None:
        assert torch.equal(one.distractor, other.distractor)
    assert_equal_batches(one.corrupted, other.corrupted)


def assert_sound(batch):
    """What holds for every batch of every probe."""
    rows, width = batch.tokens.shape
    assert torch.equal(batch.answer, batch.tokens[batch.answer_row, batch.answer_position + 1])
    assert batch.mask[batch.answer_row, batch.answer_position + 1].all()
    assert not (~batch.mask[:, :-1] & batch.mask[:, 1:]).any(), "padding stands on the right"
    for target in batch.targets.values():
        assert target.shape == (rows, width, width)
        assert target.dtype == torch.bool
        assert not target.triu(1).any(), "causal"
        assert not target[~batch.mask].any(), "no padded query"
        assert not target.transpose(1, 2)[~batch.mask].any(), "no padded key"
    if batch.corrupted is not None:
        assert torch.equal(batch.corrupted.answer, batch.answer)
        assert torch.equal(batch.corrupted.answer_row, batch.answer_row)


@pytest.fixture
def same():
    return assert_equal_batches


@pytest.fixture
def sound():
    return assert_sound
