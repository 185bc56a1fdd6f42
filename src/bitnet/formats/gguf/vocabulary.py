"""The tokenizer in a file's keys, as a tokenizer.json and its settings, and back.

Only byte-level BPE (`tokenizer.ggml.model` gpt2) is translated. `tokenizer.ggml.pre` names how text is cut
into words before merging: `llama-bpe` is Llama 3's pattern, with words that are tokens taken whole, `gpt-2`
is GPT-2's. A file without that key, such as bitnet.cpp's 2B4T, means the former.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from bitnet.config import ModelConfig
from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats.checkpoint import LLAMA3_VOCABULARY, TokenizerFiles
from bitnet.formats.gguf.container_writer import Int32Array, Writable
from bitnet.formats.gguf.metadata import Metadata

# Llama 3's pre-tokeniser
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3, _GPT2 = "llama-bpe", "gpt-2"
_PRE = {None: _LLAMA3, "llama-bpe": _LLAMA3, "llama3": _LLAMA3, "llama-v3": _LLAMA3, "gpt-2": _GPT2}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_KEY = "tokenizer.ggml."
_WAY_OUT = "Take the model's safetensors, which come with a tokenizer.json"
# bitnet.cpp's converter put the template of another model into every file: no model was trained on it.
_FOREIGN_TEMPLATE = "BITNETAssistant"
_OTHER_TEMPLATE = "'Human: '"

_log = logging.getLogger(__name__)


def read_tokenizer(metadata: Metadata, config: ModelConfig) -> TokenizerFiles | None:
    """The tokenizer in a file, or None where there is none.

    Raises:
        FormatError, ConfigError: its keys are damaged or contradict each other.
        UnsupportedError: another kind of tokenizer, or another way to cut words.
    """
    kind = metadata.text(f"{_KEY}model")
    if kind in (None, "none", "no_vocab"):
        return None
    if kind != "gpt2":
        raise UnsupportedError(
            f"{metadata.where}: {_KEY}model is {str(kind)[:60]!r}; readable is 'gpt2' (byte-level BPE). "
            f"{_WAY_OUT}"
        )
    stated = metadata.text(f"{_KEY}pre")
    if stated not in _PRE:
        raise UnsupportedError(
            f"{metadata.where}: {_KEY}pre is {str(stated)[:60]!r}; readable are 'llama-bpe' and 'gpt-2'. "
            f"{_WAY_OUT}"
        )
    tokens = metadata.strings(f"{_KEY}tokens", most=config.vocab_size)
    if len(set(tokens)) < len(tokens):
        raise FormatError(f"{metadata.where}: {_KEY}tokens names a token twice")
    core = _build(metadata, tokens, _PRE[stated])
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
    }
    for name, key in (("bos_token", "bos_token_id"), ("eos_token", "eos_token_id")):
        token = metadata.integer(f"{_KEY}{key}")
        if token is not None:
            if not 0 <= token < len(tokens):
                raise FormatError(f"{metadata.where}: {_KEY}{key} is {token}; there are {len(tokens)} tokens")
            if core.token_to_id(tokens[token]) is None:
                raise FormatError(f"{metadata.where}: {_KEY}{key} is {token}, which is marked as unused")
            settings[name] = tokens[token]
    add_bos = metadata.boolean(f"{_KEY}add_bos_token")
    # llama.cpp puts one before every text in Llama 3's kind, unless it is told not to
    settings["add_bos_token"] = _PRE[stated] == _LLAMA3 if add_bos is None else add_bos
    if settings["add_bos_token"] and "bos_token" in settings:
        # by a name of our own: the library reads a meaning into ":" and "$" in a token's text
        begin = settings["bos_token"]
        named = {"id": "bos", "ids": [core.token_to_id(begin)], "tokens": [begin]}
        core.post_processor = processors.TemplateProcessing(single=["bos", "$A"], special_tokens=[named])
    template = _read_template(metadata, config)
    if template is not None:
        settings["chat_template"] = template
    return TokenizerFiles(core.to_str(), settings)


def write_tokenizer(
    tokenizer_json: str, vocab_size: int, add_bos: bool, chat_template: str | None, where: str
) -> dict[str, Writable]:
    """The keys for a tokenizer.

    Args:
        tokenizer_json: the content of a tokenizer.json.
        vocab_size: the model's; ids without a token are filled up, as llama.cpp wants one for each.
        add_bos: whether the beginning-of-text token comes before every text.
    Raises:
        UnsupportedError: GGUF has no name for its kind.
    """
    state = json.loads(tokenizer_json)
    model = state["model"]
    pre = _name_of_pre_tokenizer(state, where)
    if bool(model.get("ignore_merges")) != (pre == _LLAMA3) and not _merges_reach_every_word(tokenizer_json):
        raise _other_kind(where)
    content: dict[int, tuple[str, int]] = {number: (text, _NORMAL) for text, number in model["vocab"].items()}
    for token in state["added_tokens"]:
        content[token["id"]] = (token["content"], _CONTROL if token["special"] else _USER_DEFINED)
    taken = {text for text, _ in content.values()}
    for number in range(vocab_size):
        if number not in content:
            content[number] = (_filler(number, taken), _UNUSED)
    tokens = [content[number] for number in range(vocab_size)]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    values: dict[str, Writable] = {
        f"{_KEY}model": "gpt2",
        f"{_KEY}pre": pre,
        f"{_KEY}tokens": [text for text, _ in tokens],
        f"{_KEY}token_type": Int32Array([kind for _, kind in tokens]),
        f"{_KEY}merges": merges,
        f"{_KEY}add_bos_token": add_bos,
    }
    if chat_template is not None:
        values["tokenizer.chat_template"] = chat_template
    return values


def _build(metadata: Metadata, tokens: list[str], pre: str) -> Tokenizer:
    types = metadata.integers(f"{_KEY}token_type", len(tokens))
    kinds = [_NORMAL] * len(tokens) if types is None else types.tolist()
    # every merge splits a token into two others, so their letters bound the number of merges
    merges = metadata.strings(f"{_KEY}merges", most=sum(map(len, tokens)))
    pairs = []
    for merge in merges:
        left, space, right = merge.partition(" ")
        if not space or " " in right:
            raise FormatError(f"{metadata.where}: {_KEY}merges holds {merge[:60]!r}; expected two tokens")
        pairs.append((left, right))
    added = [number for number, kind in enumerate(kinds) if kind in (_CONTROL, _USER_DEFINED)]
    vocabulary = {text: number for number, text in enumerate(tokens) if kinds[number] != _UNUSED}
    ordinary = {
        text: number for text, number in vocabulary.items() if kinds[number] not in (_CONTROL, _USER_DEFINED)
    }
    # Behind the others, added tokens keep their ids without standing in the vocabulary, where a word that is
    # spelled like one would be taken for it.
    if added == list(range(len(ordinary), len(ordinary) + len(added))):
        vocabulary = ordinary
    for left, right in pairs:  # the library panics over some that do not fit
        if not {left, right, left + right} <= vocabulary.keys():
            raise FormatError(
                f"{metadata.where}: {_KEY}merges joins {left[:60]!r} and {right[:60]!r}, but {_KEY}tokens "
                "lacks one of them or the result"
            )
    core = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=pairs, ignore_merges=pre == _LLAMA3))
    core.pre_tokenizer = _pre_tokenizer(pre)
    core.decoder = decoders.ByteLevel()
    for number in added:
        control = kinds[number] == _CONTROL
        token = AddedToken(tokens[number], special=control, normalized=False)
        (core.add_special_tokens if control else core.add_tokens)([token])
        if core.token_to_id(tokens[number]) != number:
            raise FormatError(
                f"{metadata.where}: the token {tokens[number][:60]!r} cannot have the id {number}"
            )
    return core


def _pre_tokenizer(pre: str) -> pre_tokenizers.PreTokenizer:
    if pre == _GPT2:
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _name_of_pre_tokenizer(state: Mapping[str, Any], where: str) -> str:
    model, pre = state["model"], state.get("pre_tokenizer")
    for name in (_LLAMA3, _GPT2):
        ours = json.loads(_pre_tokenizer(name).__getstate__())
        if (
            model["type"] == "BPE"
            and _plain(pre) == _plain(ours)
            and not state.get("normalizer")
            and not model.get("byte_fallback")
        ):
            return name
    raise _other_kind(where)


def _merges_reach_every_word(tokenizer_json: str) -> bool:
    """Whether it makes no difference if words that are tokens are taken whole (`ignore_merges`).

    That holds where the merges alone turn each token that can be a word into itself.
    """
    core = tokenizers.Tokenizer.from_str(tokenizer_json)
    core.model.ignore_merges = False
    added = {token.content for token in core.get_added_tokens_decoder().values()}
    for text in core.get_vocab(with_added_tokens=False).keys() - added:
        if len(core.model.tokenize(text)) != 1:
            return False
    for text in added:
        pieces = core.pre_tokenizer.pre_tokenize_str(text)
        if len(pieces) == 1 and len(core.model.tokenize(pieces[0][0])) != 1:
            return False
    return True


def _other_kind(where: str) -> UnsupportedError:
    return UnsupportedError(
        f"{where}: GGUF files are written with Llama 3's or GPT-2's byte-level BPE; this tokenizer cuts "
        "text in another "
        "way, for which llama.cpp has its own code. Convert to 'packed', or remove the tokenizer's files to "
        "write the weights alone"
    )


def _plain(pre: Any) -> Any:
    """A pre-tokenizer's state without `trim_offsets`, which changes no token, and with single steps "
    "unwrapped."""
    if isinstance(pre, list):
        return [_plain(step) for step in pre]
    if isinstance(pre, dict):
        steps = pre.get("pretokenizers")
        if isinstance(steps, list) and len(steps) == 1:
            return _plain(steps[0])
        return {key: _plain(value) for key, value in pre.items() if key != "trim_offsets"}
    return pre


def _filler(number: int, taken: set[str]) -> str:
    text = f"[PAD{number}]"
    while text in taken:
        text += "_"
    return text


def _read_template(metadata: Metadata, config: ModelConfig) -> str | None:
    template = metadata.text("tokenizer.chat_template")
    if template is None:
        return None
    foreign = _FOREIGN_TEMPLATE in template or (
        _OTHER_TEMPLATE in template and config.vocab_size == LLAMA3_VOCABULARY
    )
    if not foreign:
        return template
    _log.warning(
        "%s: its chat template (Human: …) is not the one the model was trained on; the published one is "
        "used instead",
        metadata.where,
    )
    return None  # the tokenizer knows the published template of Llama 3's vocabulary
