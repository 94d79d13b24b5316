import pytest
import torch

from circuitkeep.tasks.loading import Rows, training_loader, validation_loader

ROWS = Rows({"input_ids": torch.arange(10)[:, None], "labels": torch.arange(10)[:, None]})


def order(loader):
    return [row for batch in loader for row in batch["input_ids"][:, 0].tolist()]


def test_order_is_a_function_of_seed_and_epoch():
    before = torch.get_rng_state()
    loader, twin = (training_loader(ROWS, 4, seed=0) for _ in range(2))
    first = order(loader)
    assert sorted(first) == list(range(10))
    assert first == order(twin)
    loader.sampler.set_epoch(1)
    second = order(loader)
    assert second != first
    # Lest run 1 repeat run 0 one epoch later.
    assert order(training_loader(ROWS, 4, seed=1)) not in (first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_processes_share_the_rows():
    parts = [order(training_loader(ROWS, 4, seed=0, rank=r, ranks=2)) for r in (0, 1)]
    assert sorted(parts[0] + parts[1]) == list(range(10))


def test_validation_is_in_order():
    before = torch.get_rng_state()
    assert order(validation_loader(ROWS, 3)) == list(range(10))
    assert torch.equal(before, torch.get_rng_state())


def test_unequal_columns_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 2\]"):
        Rows({"input_ids": torch.zeros(1, 2), "labels": torch.zeros(2, 2)})
