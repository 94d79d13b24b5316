import pytest

from circuitkeep.compare.trajectory import checkpoints_in, in_order, step_of


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("epoch=0-step=300.ckpt", 300),
        ("step=300-loss=2.ckpt", 300),
        ("step_20/model-7b", 20),
        ("steps-20", 20),
        ("checkpoint-500", 500),
        ("run2/checkpoint-500", 500),
        ("0", 0),
        ("last.ckpt", None),
    ],
)
def test_step_of_a_name(name, step):
    assert step_of(name) == step


def test_steps_are_numbers_not_words():
    found = in_order({"step100": "a", "step20": "b", "step3": "c"})
    assert list(found.items()) == [
        (3, ("step3", "c")),
        (20, ("step20", "b")),
        (100, ("step100", "a")),
    ]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["step1", "last"], "'last' tells no training step.*trajectory=true"),
        (["a-step1", "b-step1"], "'a-step1' and 'b-step1' are both of step 1"),
    ],
)
def test_what_is_no_trajectory_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        in_order(dict.fromkeys(names, "path"))


def test_a_folder_holds_files_and_model_directories(tmp_path):
    for name in ("step=9.ckpt", "last.ckpt", "notes-3.txt"):
        (tmp_path / name).touch()
    for name in ("checkpoint-4", "checkpoint-7", "logs-5"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-4/config.json").touch()
    (tmp_path / "checkpoint-7/adapter_config.json").touch()
    assert checkpoints_in(tmp_path) == {
        "checkpoint-4": str(tmp_path / "checkpoint-4"),
        "checkpoint-7": str(tmp_path / "checkpoint-7"),
        "step=9.ckpt": str(tmp_path / "step=9.ckpt"),
    }
    with pytest.raises(ValueError, match=r"logs-5 holds no checkpoint that tells its step"):
        checkpoints_in(tmp_path / "logs-5")
