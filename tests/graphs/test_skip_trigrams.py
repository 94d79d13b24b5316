"""Tables of tokens, against the model itself and plain loops."""

import pytest
import torch

from circuitkeep.capture import Sites, attach
from circuitkeep.circuits import Head
from circuitkeep.graphs.skip_trigrams import bigrams, skip_trigrams


def test_bigrams_are_the_largest_direct_logits(oracles):
    model = oracles.attention_only("llama", 0)
    unembed = (model.model.norm.weight * model.lm_head.weight).T
    table = model.model.embed_tokens.weight @ (unembed - unembed.mean(1, keepdim=True))
    found = bigrams(attach(model), count=30)
    expected = table.flatten().topk(30).values
    assert [one.logit for one in found] == pytest.approx(expected.tolist())
    for one in found:
        assert table[one.token, one.out].item() == pytest.approx(one.logit)
    only = bigrams(attach(model), count=30, tokens=torch.tensor([4]))
    assert {one.token for one in only} == {4}
    assert len(only) == oracles.VOCAB


@pytest.mark.parametrize("offset", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "neox"])
def test_skip_trigrams_by_plain_loops(oracles, kind, offset):
    """Scores between two tokens so far apart, in prompts of the model itself."""
    model = oracles.attention_only(kind, 0, layers=1)
    backend, head = attach(model), Head(0, 1)
    vocab = range(oracles.VOCAB)
    scores = torch.zeros(oracles.VOCAB, oracles.VOCAB, dtype=torch.float64)
    for destination in vocab:
        for source in vocab:
            row = torch.tensor([[source] + [0] * (offset - 1) + [destination]])
            with backend.capture(Sites(q=(head,), k=(head,))) as captured:
                backend.forward(row)
            pair = captured.qs[head][0, offset] @ captured.ks[head][0, 0]
            scores[destination, source] = pair / 2  # of four dimensions
    attention = scores.softmax(1)
    unembed = model.get_output_embeddings().weight.T * oracles.norms(model)[-1].weight[:, None]
    if kind == "neox":
        unembed = unembed - unembed.mean(0)
    unembed = unembed - unembed.mean(1, keepdim=True)
    value, output = oracles.value_output(model, 0, 1)
    embedding, norm = model.get_input_embeddings().weight, oracles.norms(model)[0]
    normed = oracles.held_norm(norm, embedding, oracles.norm_size(norm, embedding))
    logits = normed @ value @ output @ unembed
    found = skip_trigrams(backend, head, offset, count=50)
    products = attention[:, :, None] * logits[None]
    expected = products.flatten().topk(50).values.tolist()
    assert [one.logit for one in found] == pytest.approx(expected, abs=1e-6)
    for one in found[:10]:
        product = products[one.destination, one.source, one.out].item()
        assert product == pytest.approx(one.logit, abs=1e-6)
        paid = attention[one.destination, one.source].item()
        assert one.attention == pytest.approx(paid, abs=1e-6)


def test_the_offset_counts_only_where_queries_are_turned(oracles):
    turned = attach(oracles.attention_only("llama", 0))
    still = attach(oracles.attention_only("gpt2", 0))
    assert skip_trigrams(turned, Head(0, 0), 1) != skip_trigrams(turned, Head(0, 0), 4)
    assert skip_trigrams(still, Head(0, 0), 1) == skip_trigrams(still, Head(0, 0), 4)


def test_what_has_no_table_is_refused(oracles):
    backend = attach(oracles.attention_only("gpt2", 0))
    with pytest.raises(ValueError, match="choose a head of layer 0"):
        skip_trigrams(backend, Head(1, 0))
    with pytest.raises(ValueError, match="two or more"):
        skip_trigrams(backend, Head(0, 0), tokens=torch.tensor([3]))
