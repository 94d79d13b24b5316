import json

import pytest

from circuitkeep.capture.models import build_embedded, has_tokenizer
from circuitkeep.tasks import trained_once
from circuitkeep.tasks.indirect_objects import ioi_tokenizer
from circuitkeep.tasks.trained_once import Recipe, train_once


def never():
    raise AssertionError("trained again")


def model():
    return build_embedded(0)


def test_trains_once(tmp_path):
    path = train_once(tmp_path, "small", 0, Recipe(), model)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert train_once(tmp_path, "small", 0, Recipe(), never) == path


def test_name_seed_and_recipe_are_the_key(tmp_path):
    paths = {
        train_once(tmp_path, name, seed, Recipe(steps=steps), model)
        for name, seed, steps in [("a", 0, 9), ("b", 0, 9), ("a", 1, 9), ("a", 0, 8)]
    }
    assert len(paths) == 4


def test_the_models_of_earlier_versions_are_found(tmp_path):
    path = train_once(tmp_path, "embedded", 3, Recipe(), model)
    assert path.name == "embedded-e81b18c58b3c-seed3"


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors"])
def test_an_unfinished_folder_is_trained_again(tmp_path, lost):
    path = train_once(tmp_path, "small", 0, Recipe(), model)
    (path / lost).unlink()
    train_once(tmp_path, "small", 0, Recipe(), model)
    assert (path / lost).is_file()


def test_a_folder_without_its_tokenizer_is_unfinished(tmp_path):
    path = train_once(tmp_path, "small", 0, Recipe(), model)
    assert not has_tokenizer(path)
    train_once(tmp_path, "small", 0, Recipe(), model, ioi_tokenizer())
    assert has_tokenizer(path)
    train_once(tmp_path, "small", 0, Recipe(), never, ioi_tokenizer())


def test_nothing_is_left_of_a_failed_save(tmp_path, monkeypatch):
    def full(model, path, tokenizer):
        path.mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trained_once, "save_model", full)
    with pytest.raises(OSError, match="No space left"):
        train_once(tmp_path, "small", 0, Recipe(), model)
    assert not list(tmp_path.iterdir())


def test_what_another_process_finished_meanwhile_is_taken(tmp_path):
    def late():
        path = train_once(tmp_path, "small", 0, Recipe(), model)
        (path / "config.json").write_text(json.dumps({"from": "the other"}))
        return model()

    path = train_once(tmp_path, "small", 0, Recipe(), late)
    assert "the other" in (path / "config.json").read_text()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
