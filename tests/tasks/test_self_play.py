import pytest
import torch

from circuitkeep.capture.models import load_model, save_model
from circuitkeep.tasks.self_play import SelfPlay

BOS = 32


@pytest.fixture(scope="module")
def model(tmp_path_factory, tiny_model, word_tokenizer):
    folder = tmp_path_factory.mktemp("model")
    save_model(tiny_model("llama"), folder, word_tokenizer)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text(" ".join(f"w{i % 30}" for i in range(203)))
    return path


def data_of(text, model, tokenizer, **options):
    options = {"prompt_tokens": 3, "completion_tokens": 2, "batch_size": 4} | options
    data = SelfPlay(text, model, options.pop("validation", None), tokenizer, **options)
    data.setup()
    return data


def test_the_text_is_chosen(text, model, word_tokenizer):
    rows = data_of(text, model, word_tokenizer).train_rows.columns
    assert len(rows["chosen_ids"]) == 40  # of five tokens; the rest is not whole
    for ids, mask, labels in zip(
        rows["chosen_ids"], rows["chosen_mask"], rows["chosen_labels"], strict=True
    ):
        assert ids[0] == BOS
        assert ids[2:].tolist() == ((ids[1:-1] + 1) % 30).tolist()
        assert mask.tolist() == [1] * 6
        assert labels.tolist() == [-100] * 4 + ids[4:].tolist()
    assert torch.equal(rows["rejected_ids"][:, :4], rows["chosen_ids"][:, :4])
    assert (rows["rejected_labels"][:, :4] == -100).all()


def test_what_the_model_says_is_rejected(text, tmp_path, word_tokenizer, model):
    """A model that always says w7, and one that always ends at once."""
    for said, real in ((7, 2), (33, 1)):
        sure = load_model(model)
        sure.generation_config.eos_token_id = 33
        with torch.no_grad():
            sure.lm_head.weight.zero_()
            sure.model.norm.weight.zero_()
        sure.lm_head = torch.nn.Linear(sure.lm_head.in_features, sure.lm_head.out_features)
        with torch.no_grad():
            sure.lm_head.bias.zero_()[said] = 100
        data = SelfPlay(text, model, None, word_tokenizer, 3, 2)
        tokens, mask = data._completed(sure, torch.tensor([[BOS, 1, 2, 3]] * 3))
        assert tokens.shape == mask.shape == (3, 6)
        assert (tokens[mask.bool()].view(3, -1)[:, 4:] == said).all()
        assert mask.sum(1).tolist() == [4 + real] * 3


def test_the_seed_decides(text, model, word_tokenizer):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, same, other = (
        data_of(text, model, word_tokenizer, seed=seed, pairs=30).train_rows.columns
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert len(one["chosen_ids"]) == 30
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["chosen_ids"], other["chosen_ids"])
    assert not torch.equal(one["rejected_ids"], other["rejected_ids"])


def test_a_part_is_held_out(text, model, word_tokenizer):
    data = data_of(text, model, word_tokenizer, validation=0.3, val_pairs=5)
    assert data.val_rows is not None
    assert (len(data.train_rows), len(data.val_rows)) == (28, 5)


def test_what_cannot_be(text, model, word_tokenizer):
    with pytest.raises(ValueError, match="pairs must be at least 1, got 0"):
        SelfPlay(text, model, pairs=0)
    with pytest.raises(ValueError, match=r"no text has prompt_tokens=300 .* lower them"):
        data_of(text, model, word_tokenizer, prompt_tokens=300)
    with pytest.raises(ValueError, match="text needs a tokenizer"):
        data_of(text, model, None)
