"""Reading a `tokenizer.model` in tiktoken's form, as Meta publishes it for Llama 3.

A line is a token's bytes in base64 and its rank, which is its id. Encoding joins, again and again, the
neighbours whose joint bytes have the lowest rank. The same in the terms of `tokenizers`: every way to
split a token into two tokens is a merge, ordered by the rank of the result. A piece of text that is a
token itself is taken whole (`ignore_merges`).

The 256 control tokens behind the ranks are named as in Meta-Llama-3-8B, which 2B4T uses too.
"""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from bitnet.errors import FormatError, UnsupportedError
from bitnet.tokenizer.detokenizer import byte_level_alphabet

# Llama 3's pre-tokeniser.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NAMED = {
    0: "begin_of_text",
    1: "end_of_text",
    6: "start_header_id",
    7: "end_header_id",
    9: "eot_id",
}
_CONTROL_TOKENS = 256


def read_tiktoken(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer in the file.

    Raises:
        FormatError: the file is damaged.
        UnsupportedError: it is SentencePiece's, which has the same name.
    """
    ranks = _read_ranks(path)
    char_of = {byte: char for char, byte in byte_level_alphabet().items()}  # Latin-1 code points are bytes
    names = {token: token.decode("latin-1").translate(char_of) for token in ranks}
    core = tokenizers.Tokenizer(
        models.BPE(
            vocab={names[token]: rank for token, rank in ranks.items()},
            merges=[(names[left], names[right]) for left, right in _merges(ranks)],
            ignore_merges=True,
        )
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in llama3_control_tokens()]
    )
    begin = "<|begin_of_text|>"
    core.post_processor = processors.TemplateProcessing(
        f"{begin} $A", None, [(begin, core.token_to_id(begin))]
    )
    return core


def llama3_control_tokens() -> list[str]:
    """The control tokens in the order of their ids: five have a use, the others are numbered reserves."""
    unused = iter(range(_CONTROL_TOKENS))
    return [
        f"<|{_NAMED[n]}|>" if n in _NAMED else f"<|reserved_special_token_{next(unused)}|>"
        for n in range(_CONTROL_TOKENS)
    ]


_LONGEST_TOKEN = 2000  # of base64; Llama 3's longest has 172, and every split of a token is looked at


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: not readable ({error})") from None
    if content.startswith(b"\n") and b"<unk>" in content[:64]:  # a protobuf's first field: the pieces
        raise UnsupportedError(
            f"{path}: a SentencePiece model; add its tokenizer.json, which transformers writes"
        )
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            token, rank = line.split()
            if len(token) > _LONGEST_TOKEN:
                raise FormatError(f"{path}: line {number} has a token of {len(token):,} characters")
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except FormatError:
            raise
        except (ValueError, binascii.Error):
            raise FormatError(f"{path}: line {number} is not 'base64 rank'") from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not all(bytes([b]) in ranks for b in range(256)):
        raise FormatError(f"{path}: the ranks are not 0, 1, 2, … with every single byte among the tokens")
    return ranks


def _merges(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every split of every token into two tokens, by the rank of the whole."""
    merges = []
    for token in sorted(ranks, key=ranks.__getitem__):
        splits = ((token[:at], token[at:]) for at in range(1, len(token)))
        merges += [(left, right) for left, right in splits if left in ranks and right in ranks]
    return merges
