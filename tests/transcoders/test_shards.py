import pytest
import torch

from circuitkeep.transcoders.harvest import Harvest
from circuitkeep.transcoders.shards import InMemory, Shards, write_shards

SIZES = [5, 3, 4]


def part(number):
    start = sum(SIZES[:number])
    values = torch.arange(start, start + SIZES[number], dtype=torch.float16)
    return Harvest(values[:, None, None].expand(-1, 2, 3).clone(), -values[:, None, None].clone())


def test_what_is_written_is_taken_in_any_order(tmp_path):
    told = []
    write_shards(tmp_path, "one", 3, part, lambda *of: told.append(of))
    assert told == [(1, 3), (2, 3), (3, 3)]
    shards = Shards(tmp_path, "one", held=2)
    memory = InMemory(part(number) for number in range(3))
    assert len(shards) == len(memory) == 12
    assert shards.sizes == SIZES
    for seed in range(5):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
        for source in (shards, memory):
            found = source.take(order)
            assert found.inputs[:, 1, 2].tolist() == order.tolist()
            assert found.outputs[:, 0, 0].tolist() == (-order).tolist()
            assert found.inputs.dtype == torch.float16


def test_no_more_files_than_asked_are_in_memory_and_none_is_read_twice_in_a_row(tmp_path):
    write_shards(tmp_path, "one", 3, part)
    shards = Shards(tmp_path, "one", held=2)
    for _ in range(3):
        shards.take(torch.tensor([0, 6, 4, 7]))
    assert shards.loads == 2
    # A batch across the end of a block: what is in memory is used before it is given up.
    shards.take(torch.tensor([11, 1, 6]))
    assert shards.loads == 3
    assert len(shards._cache) == 2


def test_what_was_cut_off_goes_on(tmp_path):
    made = []

    def make(number):
        made.append(number)
        if number == 2 and len(made) == 3:
            raise KeyboardInterrupt
        return part(number)

    with pytest.raises(KeyboardInterrupt):
        write_shards(tmp_path, "one", 3, make)
    with pytest.raises(ValueError, match=r"no activations in .*, or not all"):
        Shards(tmp_path, "one", held=1)
    write_shards(tmp_path, "one", 3, make)
    assert made == [0, 1, 2, 2]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert Shards(tmp_path, "one", held=1).sizes == SIZES


def test_shards_of_another_model_are_refused(tmp_path):
    write_shards(tmp_path, "one", 3, part)
    with pytest.raises(ValueError, match="activations of another model"):
        write_shards(tmp_path, "other", 3, part)
    with pytest.raises(ValueError, match="activations of another model"):
        Shards(tmp_path, "other", held=1)


def test_a_torn_file_is_named(tmp_path):
    write_shards(tmp_path, "one", 3, part)
    path = tmp_path / "activations-00001.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"activations-00001.safetensors is no whole file"):
        write_shards(tmp_path, "one", 3, part)


def test_at_least_one_file_must_be_in_memory(tmp_path):
    write_shards(tmp_path, "one", 3, part)
    with pytest.raises(ValueError, match="shards_in_memory=0"):
        Shards(tmp_path, "one", held=0)
