import pytest
import torch

from circuitkeep.probes import (
    copy_target,
    duplicate_token_target,
    induction_target,
    previous_token_target,
)
from circuitkeep.probes.targets import TEXT_LABELS, text_targets


def pairs(target):
    return {tuple(entry) for entry in target.nonzero().tolist()}


@pytest.fixture
def row():
    """BOS a b a b, with BOS masked."""
    tokens = torch.tensor([[0, 5, 6, 5, 6]])
    return tokens, torch.tensor([[False, True, True, True, True]])


def test_previous_token_by_hand(row):
    assert pairs(previous_token_target(row[1])) == {(0, 2, 1), (0, 3, 2), (0, 4, 3)}


def test_duplicate_token_by_hand(row):
    assert pairs(duplicate_token_target(*row)) == {(0, 3, 1), (0, 4, 2)}


def test_induction_by_hand(row):
    assert pairs(induction_target(*row)) == {(0, 3, 2), (0, 4, 3)}
    assert pairs(induction_target(*row, offset=2)) == {(0, 3, 3), (0, 4, 4)}
    assert pairs(induction_target(*row, offset=9)) == set()


def test_copy_by_hand(row):
    # From b (2) comes a, which stands at 1; from a (3) comes b, which stands at 2.
    assert pairs(copy_target(*row)) == {(0, 2, 1), (0, 3, 2)}


def test_copy_may_attend_to_the_query_itself():
    target = copy_target(torch.tensor([[4, 4]]), torch.ones(1, 2, dtype=torch.bool))
    assert pairs(target) == {(0, 0, 0)}


def test_induction_offset_zero_is_duplicate_and_negative_is_refused(row):
    assert torch.equal(induction_target(*row, offset=0), duplicate_token_target(*row))
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        induction_target(*row, offset=-1)


@pytest.mark.parametrize("offset", [1, 3])
def test_against_naive_loops(offset):
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 4, (6, 11), generator=generator)
    mask = torch.rand(6, 11, generator=generator) < 0.8
    found = text_targets(tokens, mask, offset) | {"copy": copy_target(tokens, mask)}
    expected = {role: set() for role in (*TEXT_LABELS, "copy")}
    for b in range(6):
        for q in range(11):
            for k in range(q + 1):
                if not (mask[b, q] and mask[b, k]):
                    continue
                if k == q - 1:
                    expected["previous-token"].add((b, q, k))
                if k < q and tokens[b, k] == tokens[b, q]:
                    expected["duplicate-token"].add((b, q, k))
                earlier = k - offset
                if 0 <= earlier < q and mask[b, earlier] and tokens[b, earlier] == tokens[b, q]:
                    expected["induction"].add((b, q, k))
                if q + 1 < 11 and mask[b, q + 1] and tokens[b, k] == tokens[b, q + 1]:
                    expected["copy"].add((b, q, k))
    assert {role: pairs(target) for role, target in found.items()} == expected
