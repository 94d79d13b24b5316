import pytest

from circuitkeep.compare.origins import trained_on

TASK = "task: {_target_: circuitkeep.tasks.%s}\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("data: {train: /x/shakespeare.txt}\n" + TASK % "CausalLM", "shakespeare.txt"),
        ("data: {_target_: a.KeyValueMap, seed: '${seed}'}\n" + TASK % "CausalLM", "KeyValueMap"),
        ("data: {_target_: a.Pairs}\n" + TASK % "dpo.DPO", "Pairs (DPO)"),
        ("data: 3\n", ""),
        ("{", ""),
    ],
)
@pytest.mark.parametrize("name", ["config.yaml", ".hydra/config.yaml"])
def test_the_config_beside_a_checkpoint_tells(tmp_path, name, content, said):
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert trained_on(tmp_path / "run/model") == said
    assert trained_on(tmp_path / "run/checkpoints/step=3.ckpt") == said


def test_no_config_says_nothing(tmp_path):
    assert trained_on(tmp_path / "model") == trained_on("gpt2") == ""
