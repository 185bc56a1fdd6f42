import base64

import pytest

from bitnet.errors import FormatError, UnsupportedError
from bitnet.tokenizer import Tokenizer

BYTES = [bytes([byte]) for byte in range(256)]


def write(folder, tokens):
    lines = [base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens)]
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def test_lowest_rank_joins_first_and_control_tokens_follow(tmp_path):
    tokenizer = Tokenizer.from_directory(write(tmp_path, [*BYTES, b"bc", b"ab", b"abc", b" a"]))
    assert tokenizer.encode("abcd", add_bos=False) == [258, ord("d")]  # a + bc
    assert tokenizer.encode("ab", add_bos=False) == [257]
    assert tokenizer.bos_token_id == 260
    assert tokenizer.token_to_id("<|eot_id|>") == 269
    assert tokenizer.vocab_size == 260 + 256


def test_a_token_that_no_merge_reaches_is_found_whole(tmp_path):
    tokenizer = Tokenizer.from_directory(write(tmp_path, [*BYTES, b"xyz"]))
    assert tokenizer.encode("xyz", add_bos=False) == [256]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "ranks are not"),
        (b"QQ== 0\n", "ranks are not"),
        (b"QQ== zero\n", "line 1 is not"),
        (b"QQ== 0\n???? 1\n", "line 2 is not"),
        (b"QQ==\n", "line 1 is not"),
        (b"\x00\xff\x10", "line 1 is not"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, words):
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(FormatError, match=rf"tokenizer\.model: .*{words}"):
        Tokenizer.from_directory(tmp_path)


def test_sentencepiece_is_named(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    with pytest.raises(UnsupportedError, match="SentencePiece"):
        Tokenizer.from_directory(tmp_path)
