import pytest

from circuitkeep.pages.attention import token_text


@pytest.fixture(scope="module")
def byte_tokenizer():
    """GPT-2's way of spelling: a token per byte, and a few longer ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġthe", "ĊĊ", "Ã©", "âĢĭ", "ð"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    inner = Tokenizer(models.BPE(vocabulary, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken("<|end of text|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end of text|>")


@pytest.mark.parametrize(
    ("piece", "text"),
    [
        ("a", "a"),
        ("Ġ", "␣"),
        ("Ġthe", "␣the"),
        ("ĊĊ", "↵↵"),
        ("ĉ", "⇥"),
        ("Ã©", "é"),
        ("Ã", "\\xc3"),
        ("âĢĭ", "\\u200b"),
        ("Ā", "\\u0000"),
        ("<|end of text|>", "<|end␣of␣text|>"),
    ],
)
def test_pieces_of_bytes(byte_tokenizer, piece, text):
    assert token_text(byte_tokenizer, byte_tokenizer.convert_tokens_to_ids(piece)) == text


def test_every_byte_has_a_text_of_its_own(byte_tokenizer):
    texts = [token_text(byte_tokenizer, token) for token in range(256)]
    assert len(set(texts)) == 256
    assert all(text.isprintable() and text for text in texts)


@pytest.mark.parametrize(
    ("piece", "text"),
    [
        ("▁the", "␣the"),
        ("▁", "␣"),
        ("Ġ", "Ġ"),
        ("<0x0A>", "↵"),
        ("<0xE2>", "\\xe2"),
        ("</s>", "</s>"),
        ("\u202e", "\\u202e"),
        ("a\u00a0b", "a\\u00a0b"),
        ("日本", "日本"),
    ],
)
def test_pieces_of_text(piece, text):
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 1, piece: 2}, unk_token="<unk>"))
    inner.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")
    assert token_text(tokenizer, tokenizer.convert_tokens_to_ids(piece)) == text


def test_a_number_where_there_is_no_text(word_tokenizer):
    assert token_text(None, 17) == "17"
    assert token_text(word_tokenizer, 3) == "w3"
    assert token_text(word_tokenizer, 4711) == "#4711"
