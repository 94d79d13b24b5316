import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from circuitkeep.evals.capability import (
    answer_hits,
    capability_sums,
    evaluate_capability,
    next_token_nats,
    summarize_capability,
)


class Fixed(nn.Module):
    """Predicts token + 1 with the log-odds `sharpness`; dropout would show in the values."""

    def __init__(self, sharpness: float = 0.0, vocab: int = 8):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(sharpness))
        self.vocab = vocab
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_ids, attention_mask):
        one_hot = nn.functional.one_hot((input_ids + 1) % self.vocab, self.vocab).float()
        return SimpleNamespace(logits=self.scale * self.dropout(one_hot))


def batch(tokens, labels=None, answers=None):
    tokens = torch.tensor(tokens)
    made = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": tokens.clone() if labels is None else torch.tensor(labels),
    }
    if answers is not None:
        made["answers"] = torch.tensor(answers)
    return made


def test_nats_against_a_loop():
    logits = torch.randn(3, 5, 7, dtype=torch.float64)
    labels = torch.randint(7, (3, 5))
    labels[1, 2:] = -100
    expected, count = 0.0, 0
    for row in range(3):
        for position in range(4):
            wanted = int(labels[row, position + 1])
            if wanted != -100:
                expected -= float(logits[row, position].log_softmax(-1)[wanted])
                count += 1
    nats, tokens = next_token_nats(logits, labels)
    assert nats.item() == pytest.approx(expected)
    assert tokens.item() == count


def test_nats_gradcheck_and_no_label():
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[1, 2, 3], [0, -100, 1]])
    torch.autograd.gradcheck(lambda x: next_token_nats(x, labels)[0], logits)
    nats, tokens = next_token_nats(logits, torch.full((2, 3), -100))
    assert (nats.item(), tokens.item()) == (0.0, 0)
    nats.backward()
    assert not logits.grad.any()


def test_bfloat16_logits_are_scored_in_float32():
    logits = torch.randn(1, 4, 9).bfloat16()
    labels = torch.randint(9, (1, 4))
    assert next_token_nats(logits, labels)[0] == next_token_nats(logits.float(), labels)[0]


def test_answer_hits_by_hand():
    logits = torch.zeros(1, 4, 3)
    logits[0, :, 2] = 1.0
    labels = torch.tensor([[2, 2, 1, 2]])
    answers = torch.tensor([[True, True, True, False]])
    # The first token is never predicted; of the two answers left, 2 is right and 1 is wrong.
    assert [x.item() for x in answer_hits(logits, labels, answers)] == [1, 2]


def test_uniform_model_by_hand():
    values = evaluate_capability(Fixed(), [batch([[1, 2, 3]])])
    assert values == pytest.approx({"loss_nats": math.log(8), "perplexity": 8.0, "tokens": 2})


def test_every_token_weighs_the_same():
    right, wrong = [[0, 1, 2, 3, 4, 5, 6]], [[0, 5]]
    model = Fixed(sharpness=3.0)
    together = evaluate_capability(model, [batch(right), batch(wrong)])["loss_nats"]
    parts = [evaluate_capability(model, [batch(x)])["loss_nats"] for x in (right, wrong)]
    assert together == pytest.approx((6 * parts[0] + parts[1]) / 7)


def test_accuracy_only_over_answers():
    tokens = [[0, 1, 2, 7]]
    answers = [[False, False, True, True]]
    values = evaluate_capability(Fixed(3.0), [batch(tokens, answers=answers), batch(tokens)])
    assert values["accuracy"] == 0.5
    assert values["tokens"] == 6


def test_nothing_is_disturbed():
    model = Fixed(3.0).train()
    model.dropout.eval()
    model.dropout.training = True
    flags = [m.training for m in model.modules()]
    before = torch.get_rng_state()
    drawing = torch.utils.data.DataLoader([batch([[0, 1, 2]])], batch_size=None)
    first = evaluate_capability(model, drawing)
    assert first == evaluate_capability(model, drawing)
    assert torch.equal(before, torch.get_rng_state())
    assert [m.training for m in model.modules()] == flags
    assert model.scale.grad is None


def test_flags_are_restored_after_an_error():
    model = Fixed().train()
    with pytest.raises(KeyError):
        evaluate_capability(model, [{}])
    assert model.training
    assert model.dropout.training


def test_no_label_is_an_error():
    with pytest.raises(ValueError, match="no token of the evaluation data has a label"):
        evaluate_capability(Fixed(), [batch([[1, 2]], labels=[[1, -100]])])


def test_sums_of_parts_make_the_whole():
    batches = [batch([[0, 1, 2]], answers=[[False, True, True]]), batch([[0, 4]])]
    model = Fixed(2.0)
    parts = sum(capability_sums(model, [b]) for b in batches)
    assert summarize_capability(parts) == pytest.approx(evaluate_capability(model, batches))


def test_a_hopeless_loss_has_infinite_perplexity():
    values = summarize_capability(torch.tensor([800.0, 1, 0, 0], dtype=torch.float64))
    assert values["perplexity"] == math.inf
