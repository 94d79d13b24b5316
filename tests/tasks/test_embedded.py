import numpy as np
import pytest
import torch

from circuitkeep.capture.models import load_model
from circuitkeep.tasks import embedded
from circuitkeep.tasks.embedded import Recipe, train_embedded

SHORT = Recipe(steps=3, batch_size=4)


def weights(path):
    return torch.cat([p.flatten() for p in load_model(path).parameters()])


def test_trains_once_and_leaves_no_trace(tmp_path, monkeypatch):
    # Python's generator is left out: beartype, which checks the types in tests, draws from it.
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    path = train_embedded(tmp_path, 0, SHORT, progress_bar=False)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    model = load_model(path)
    assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (2, 4)
    monkeypatch.setattr(embedded, "_train", None)
    assert train_embedded(tmp_path, 0, SHORT) == path


def test_seed_and_recipe_are_the_key(tmp_path):
    path = train_embedded(tmp_path / "a", 0, SHORT, progress_bar=False)
    again = train_embedded(tmp_path / "b", 0, SHORT, progress_bar=False)
    other_seed = train_embedded(tmp_path / "a", 1, SHORT, progress_bar=False)
    other_recipe = train_embedded(tmp_path / "a", 0, Recipe(steps=4, batch_size=4), False)
    assert len({path, other_seed, other_recipe}) == 3
    assert torch.equal(weights(path), weights(again))
    assert not torch.equal(weights(path), weights(other_seed))


def test_an_unfinished_folder_is_trained_again(tmp_path):
    path = train_embedded(tmp_path, 0, SHORT, progress_bar=False)
    (path / "model.safetensors").unlink()
    train_embedded(tmp_path, 0, SHORT, progress_bar=False)
    assert (path / "model.safetensors").is_file()


def test_nothing_is_left_of_a_failed_save(tmp_path, monkeypatch):
    def full(model, path):
        path.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedded, "save_model", full)
    with pytest.raises(OSError, match="No space left"):
        train_embedded(tmp_path, 0, SHORT, progress_bar=False)
    assert not list(tmp_path.iterdir())


def test_the_recipe_teaches_repetition(tmp_path):
    """The whole recipe takes 10 s; a third of it is enough to see that it works."""
    from circuitkeep.evals.capability import evaluate_capability
    from circuitkeep.tasks.repetition import RepeatedSegments

    path = train_embedded(tmp_path, 0, Recipe(steps=350), progress_bar=False)
    rows = RepeatedSegments(train_rows=1, val_rows=128, seed=9).val_dataloader()
    assert evaluate_capability(load_model(path), rows)["accuracy"] > 0.8
