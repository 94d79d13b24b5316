import pytest
import torch

from circuitkeep.tasks.transcoding_order import BlockOrder


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("held", [1, 2, 5])
def test_every_token_once_and_few_files_at_a_time(held, ranks):
    sizes = [7, 5, 8, 4, 7]
    parts = [list(BlockOrder(sizes, held, rank, ranks, 0)) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    order = [index for step in zip(*parts, strict=True) for index in step]
    assert len(order) == len(set(order)) == 31 // ranks * ranks
    # The order is that of one process.
    assert order == list(BlockOrder(sizes, held, 0, 1, 0))[: len(order)]
    ends = torch.tensor(sizes).cumsum(0)
    which = torch.bucketize(torch.tensor(order), ends, right=True).tolist()
    seen = list(dict.fromkeys(which))
    place = 0
    for first in range(0, 5, held):
        block = seen[first : first + held]
        size = sum(sizes[number] for number in block)
        assert set(which[place : place + size]) == set(block)
        place += size


def test_the_order_follows_from_seed_and_epoch_and_goes_on_where_it_was():
    files = [7, 5, 8], 2
    order = BlockOrder(*files, 0, 1, 0)
    first = list(order)
    assert first == list(BlockOrder(*files, 0, 1, 0)) != sorted(first)
    assert first != list(BlockOrder(*files, 0, 1, 1))
    order.set_epoch(1)
    assert first != list(order)
    begun = BlockOrder(*files, 0, 1, 0)
    steps = iter(begun)
    assert [next(steps) for _ in range(6)] == first[:6]
    resumed = BlockOrder(*files, 0, 1, 0)
    resumed.load_state_dict(begun.state_dict())
    assert list(resumed) == first[6:]
    assert list(resumed) == first
