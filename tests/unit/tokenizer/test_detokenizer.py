import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers

from bitnet.errors import UnsupportedError
from bitnet.tokenizer import Tokenizer


def in_pieces(tokenizer, ids):
    stream = tokenizer.stream()
    return [*(stream.push(token) for token in ids), stream.finish()]


def byte_level_core():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<bos>", *alphabet, "ĠÃ", "©!", "ðŁĺ", "Ġthe"]
    core = Core(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=[]))
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<bos>"])
    core.add_tokens(["é€", "a b", "Ġx"])  # outside the byte alphabet, with a space, and all inside
    return core


def sentencepiece_core(decoder):
    tokens = ["<s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁a", "b", "▁▁", "c▁", "é"]
    vocab = {token: place for place, token in enumerate(tokens)}
    core = Core(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    core.decoder = decoder
    return core


LLAMA_2 = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
TOKENIZERS = [
    Tokenizer(byte_level_core()),
    *(Tokenizer(sentencepiece_core(d)) for d in (LLAMA_2, decoders.Metaspace(), None)),
]
HIGHEST = max(tokenizer.vocab_size for tokenizer in TOKENIZERS)
IDS = st.lists(st.integers(0, HIGHEST + 2) | st.integers(HIGHEST - 12, HIGHEST), max_size=20)  # holes too


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["byte-level", "llama-2", "metaspace", "none"])
@given(IDS)
def test_pieces_are_the_whole_for_any_ids(tokenizer, ids):
    assert "".join(in_pieces(tokenizer, ids)) == tokenizer.decode(ids)


@given(st.text(max_size=30))
def test_no_piece_ends_within_a_character(text):
    tokenizer = TOKENIZERS[0]
    ids = [token for char in text.encode() for token in [tokenizer.token_to_id(alphabet_char(char))]]
    pieces = in_pieces(tokenizer, ids)
    assert "".join(pieces) == text
    assert all("�" not in piece for piece in pieces) or "�" in text


def alphabet_char(byte):
    """GPT-2's stand-in for a byte, from its own rule: the printable ones stand for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    return chr(byte if byte in printable else 256 + sum(b not in printable for b in range(byte)))


def test_text_comes_as_soon_as_it_is_certain():
    tokenizer = TOKENIZERS[0]
    ids = [tokenizer.token_to_id(token) for token in ("Ġthe", "ĠÃ", "©!", "ðŁĺ", "Ģ", "ðŁĺ")]
    assert in_pieces(tokenizer, ids) == [" the", " ", "é!", "", "😀", "", "�"]


def test_a_run_of_byte_tokens_waits_for_its_end():
    tokenizer = TOKENIZERS[1]
    ids = [tokenizer.token_to_id(token) for token in ("▁a", "<0xC3>", "<0xA9>", "b", "<0xC3>")]
    assert in_pieces(tokenizer, ids) == ["a", "", "", "éb", "", "�"]


def test_a_byte_level_decoder_among_others_is_refused():
    core = byte_level_core()
    core.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    with pytest.raises(UnsupportedError, match=r"ByteLevel \+ Strip"):
        Tokenizer(core)
