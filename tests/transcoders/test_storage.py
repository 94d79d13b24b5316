import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from circuitkeep.transcoders.storage import about_transcoder, load_transcoder, save_transcoder

ACTIVATIONS = ["jumprelu", "relu", "topk", "batchtopk"]


def same(one, other):
    assert one.config == other.config
    for name, value in one.state_dict().items():
        assert_close(other.state_dict()[name], value)


@pytest.mark.parametrize("reads", ["stream", "normalized"])
@pytest.mark.parametrize("cross_layer", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_is_saved_is_loaded(make, tmp_path, activation, cross_layer, reads):
    k = 2 if "topk" in activation else None
    own = make(activation=activation, k=k, cross_layer=cross_layer, reads=reads)
    save_transcoder(own, tmp_path / "t", {"model": "m", "quality": {"tokens": 3}})
    loaded = load_transcoder(tmp_path / "t")
    same(own, loaded)
    stream = torch.randn(3, 5, 4)
    assert_close(loaded(stream), own(stream))
    about = about_transcoder(tmp_path / "t")
    assert about["quality"] == {"tokens": 3}
    readable = activation != "topk" and reads == "stream"
    assert (about["circuit_tracer"] == "readable") == readable
    # What it cannot hold must not look like what it can.
    assert bool(list((tmp_path / "t").glob("W_*"))) == readable
    assert (tmp_path / "t" / "config.yaml").exists() == readable


def published(folder, stream):
    """The reconstruction of a folder in circuit-tracer's layout, by its keys alone."""
    layers = len(list(folder.glob("W_enc_*.safetensors")))
    encoders = [load_file(folder / f"W_enc_{i}.safetensors") for i in range(layers)]
    out = [encoders[i][f"b_dec_{i}"].expand_as(stream[i]) for i in range(layers)]
    for i, file in enumerate(encoders):
        pre = stream[i] @ file[f"W_enc_{i}"].T + file[f"b_enc_{i}"]
        threshold = file.get(f"threshold_{i}")
        active = torch.relu(pre) if threshold is None else pre * (pre > threshold)
        decoders = load_file(folder / f"W_dec_{i}.safetensors")[f"W_dec_{i}"]
        assert decoders.shape[1] == layers - i
        for place in range(layers - i):
            out[i + place] = out[i + place] + active @ decoders[:, place]
    return torch.stack(out)


@pytest.mark.parametrize("cross_layer", [True, False])
@pytest.mark.parametrize("activation", ["jumprelu", "relu", "batchtopk"])
def test_the_published_layout(make, tmp_path, activation, cross_layer):
    own = make(
        activation=activation, k=2 if "topk" in activation else None, cross_layer=cross_layer
    )
    save_transcoder(own, tmp_path / "t", {"model": "a/b"})
    keys = {path.name: sorted(load_file(path)) for path in (tmp_path / "t").glob("*.safetensors")}
    expected = {f"W_dec_{i}.safetensors": [f"W_dec_{i}"] for i in range(3)}
    jumps = activation != "relu"
    for i in range(3):
        names = [f"W_enc_{i}", f"b_dec_{i}", f"b_enc_{i}", *([f"threshold_{i}"] if jumps else [])]
        expected[f"W_enc_{i}.safetensors"] = names
    assert keys == expected
    file = load_file(tmp_path / "t" / "W_enc_1.safetensors")
    assert file["W_enc_1"].shape == (6, 4)
    assert file["b_enc_1"].shape == (6,)
    assert file["b_dec_1"].shape == (4,)
    assert yaml.safe_load((tmp_path / "t" / "config.yaml").read_text()) == {
        "model_name": "a/b",
        "model_kind": "cross_layer_transcoder",
        "feature_input_hook": "hook_resid_mid",
        "feature_output_hook": "hook_mlp_out",
    }
    stream = torch.randn(3, 5, 4)
    assert_close(published(tmp_path / "t", stream), own(stream))


@pytest.fixture
def foreign(tmp_path):
    """A folder as another program writes it, in bfloat16, of two layers."""

    def write(thresholds=True, **more):
        folder = tmp_path / "foreign"
        folder.mkdir(exist_ok=True)
        for i in range(2):
            tensors = {
                f"W_enc_{i}": torch.randn(6, 4),
                f"b_enc_{i}": torch.randn(6),
                f"b_dec_{i}": torch.randn(4),
                **({f"threshold_{i}": torch.rand(6)} if thresholds else {}),
                **{f"{name}_{i}": value for name, value in more.items()},
            }
            tensors = {name: value.bfloat16() for name, value in tensors.items()}
            save_file(tensors, folder / f"W_enc_{i}.safetensors")
            decoders = torch.randn(6, 2 - i, 4).bfloat16()
            save_file({f"W_dec_{i}": decoders}, folder / f"W_dec_{i}.safetensors")
        return folder

    return write


@pytest.mark.parametrize("thresholds", [True, False])
def test_a_folder_of_another_program_is_read_and_written_again(foreign, tmp_path, thresholds):
    folder = foreign(thresholds)
    loaded = load_transcoder(folder)
    assert loaded.config.activation == ("jumprelu" if thresholds else "relu")
    assert (loaded.config.n_layers, loaded.config.n_features, loaded.config.d_model) == (2, 6, 4)
    save_transcoder(loaded, tmp_path / "again", {})
    for path in folder.glob("*.safetensors"):
        again = load_file(tmp_path / "again" / path.name)
        own = load_file(path)
        assert again.keys() == own.keys()
        assert all(torch.equal(again[name], value.float()) for name, value in own.items())


def test_what_cannot_be_held_is_refused(foreign, tmp_path):
    folder = foreign(W_skip=torch.eye(4))
    with pytest.raises(ValueError, match=r"skip connections \(W_skip_0\)"):
        load_transcoder(folder)
    folder = foreign()
    hooks = {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}
    (folder / "config.yaml").write_text(yaml.safe_dump(hooks))
    with pytest.raises(ValueError, match=r"feature_input_hook=ln2.hook_normalized cannot be held"):
        load_transcoder(folder)


def test_what_is_no_transcoder_is_refused(make, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of a transcoder"):
        load_transcoder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no transcoder"):
        load_transcoder(tmp_path)
    save_transcoder(make(), tmp_path / "t", {})
    (tmp_path / "t" / "W_dec_1.safetensors").unlink()
    with pytest.raises(ValueError, match="holds no whole transcoder"):
        load_transcoder(tmp_path / "t")


def test_an_old_folder_is_replaced_and_a_failed_one_leaves_it(make, tmp_path, monkeypatch):
    save_transcoder(make(), tmp_path / "t", {"model": "one"})
    save_transcoder(make(activation="topk", k=1), tmp_path / "t", {"model": "two"})
    assert not list((tmp_path / "t").glob("W_*"))
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_transcoder(make(), tmp_path / "t", {"model": "three"})
    assert about_transcoder(tmp_path / "t")["model"] == "two"
    assert [path.name for path in tmp_path.iterdir()] == ["t"]
