import math

import pytest
import torch
from torch.testing import assert_close

from circuitkeep.capture import attach
from circuitkeep.circuits import Circuit, Head, Role
from circuitkeep.penalties import Activations, Labels, Rehearsal, Sum
from circuitkeep.probing import probe_rows
from circuitkeep.reference import Fingerprint, capture_reference
from circuitkeep.reference.rows import observe

CIRCUIT = Circuit(
    "guarded",
    (Role("induction", (Head(1, 0),)),),
    {"_target_": "circuitkeep.probes.RepeatedTokens", "length": 12, "segment": [3, 4]},
    "accuracy",
    "made up",
)


def labels_of(answer_row, n_rows):
    mask = torch.ones(n_rows, 1, dtype=torch.bool)
    return Labels(mask, mask[:, None], mask[:, None, None], torch.tensor(answer_row))


def test_by_hand():
    # Row 0 has two answers, row 1 one, row 2 none.
    now = Activations(answers=torch.tensor([0.5, 0.25, 0.125]).log())
    value = Rehearsal()(now, Activations(), labels_of([0, 0, 1], 3))
    assert value.item() == pytest.approx((1.5 * math.log(2) + 3 * math.log(2)) / 3)


def test_gradcheck():
    def of(answers):
        return Rehearsal()(Activations(answers=answers), Activations(), labels_of([0, 0, 1], 3))

    answers = torch.tensor([-0.5, -1.0, -2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(of, answers)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="hold no 'answers'"):
        Rehearsal()(Activations(), Activations(), labels_of([0], 1))


def test_it_is_the_models_cross_entropy_and_reaches_every_weight(tiny_model):
    model = tiny_model("llama")
    backend = attach(model)
    batch = probe_rows(CIRCUIT, backend, None, "train", 4, 0)
    penalty = Sum({"rehearsal": Rehearsal()})
    fingerprint = Fingerprint("", "", "", "", "")
    reference = capture_reference(backend, CIRCUIT, batch, penalty.needs, False, fingerprint)
    rows, before = reference.select(torch.tensor([2, 0]), backend.device)
    now, _ = observe(backend, rows, CIRCUIT, penalty.needs)
    value = penalty(now, before, rows.labels)

    log_probs = model(batch.tokens).logits.log_softmax(-1)
    answers = list(zip(batch.answer_row, batch.answer_position, batch.answer, strict=True))
    expected = 0.0
    for row in (2, 0):
        nats = [-log_probs[b, at, token] for b, at, token in answers if b == row]
        expected = expected + sum(nats) / len(nats) / 2
    assert_close(value, expected)
    value.backward()
    assert all(p.grad.any() for name, p in model.named_parameters() if "embed" not in name)
