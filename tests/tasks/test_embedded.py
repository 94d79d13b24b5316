import numpy as np
import torch

from circuitkeep.capture.models import load_model
from circuitkeep.tasks.embedded import train_embedded
from circuitkeep.tasks.trained_once import Recipe

SHORT = Recipe(steps=3, batch_size=4)


def weights(path):
    return torch.cat([p.flatten() for p in load_model(path).parameters()])


def test_leaves_no_trace(tmp_path):
    # Python's generator is left out: beartype, which checks the types in tests, draws from it.
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    path = train_embedded(tmp_path, 0, SHORT, progress_bar=False)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    model = load_model(path)
    assert (model.config.num_hidden_layers, model.config.num_attention_heads) == (2, 4)


def test_seed_and_recipe_are_the_key(tmp_path):
    path = train_embedded(tmp_path / "a", 0, SHORT, progress_bar=False)
    again = train_embedded(tmp_path / "b", 0, SHORT, progress_bar=False)
    other_seed = train_embedded(tmp_path / "a", 1, SHORT, progress_bar=False)
    other_recipe = train_embedded(tmp_path / "a", 0, Recipe(steps=4, batch_size=4), False)
    assert len({path, other_seed, other_recipe}) == 3
    assert torch.equal(weights(path), weights(again))
    assert not torch.equal(weights(path), weights(other_seed))


def test_the_recipe_teaches_repetition(tmp_path):
    """The whole recipe takes 10 s; a third of it is enough to see that it works."""
    from circuitkeep.evals.capability import evaluate_capability
    from circuitkeep.tasks.repetition import RepeatedSegments

    path = train_embedded(tmp_path, 0, Recipe(steps=350), progress_bar=False)
    rows = RepeatedSegments(train_rows=1, val_rows=128, seed=9).val_dataloader()
    assert evaluate_capability(load_model(path), rows)["accuracy"] > 0.8
