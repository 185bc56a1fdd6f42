"""The tokenizer of a checkpoint: `tokenizer.json` through the `tokenizers` library, and its chat template.

Two rules hold everywhere. What the tokenizer puts before every text (Llama 3: id 128000) stands there
exactly once. And text is text: a control token such as `<|eot_id|>` is recognised only where the caller
asks for it (`special=True`) or the chat template wrote it; see `sealing`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tokenizers

from bitnet.errors import FormatError, InputError, UnsupportedError
from bitnet.json_file import read_json_object
from bitnet.tokenizer.chat_template import CHAT_TEMPLATE_2B4T, ChatTemplate
from bitnet.tokenizer.detokenizer import (
    ByteLevelDetokenizer,
    Detokenizer,
    RunDetokenizer,
    byte_level_alphabet,
)
from bitnet.tokenizer.sealing import ControlTokens, RenderedChat
from bitnet.tokenizer.tiktoken_file import read_tiktoken

_LLAMA3 = {"<|begin_of_text|>": 128000, "<|eot_id|>": 128009}
_LONGEST_CONTROL = 1000  # characters; searching texts for one takes the square of it
_T = TypeVar("_T")


class Tokenizer:
    """Text to ids and back. Immutable, safe to share between threads.

    Args:
        core: a tokenizer of the `tokenizers` library; owned from now on.
        settings: the content of `tokenizer_config.json`, of which `bos_token`, `eos_token`,
            `add_bos_token` and `chat_template` are used.
        where: its folder or file, for error messages.
    Raises:
        FormatError: the vocabulary is empty, or the settings name a token outside it.
        UnsupportedError: it decodes in a way that cannot be streamed.
    """

    def __init__(
        self, core: tokenizers.Tokenizer, settings: Mapping[str, Any] | None = None, where: str = "tokenizer"
    ) -> None:
        settings = settings or {}
        self.where = where
        self._core = core
        core.no_truncation()  # some published files cut texts at 512 tokens
        core.no_padding()
        core.encode_special_tokens = True  # that is: as plain text
        highest = max(core.get_vocab(with_added_tokens=True).values(), default=-1)
        if highest < 0:
            raise FormatError(f"{where}: the vocabulary is empty")
        self.vocab_size: int = highest + 1  # ids lie below it; holes are possible
        self._byte_level = _is_byte_level(core, where)
        self._bytes: dict[int, bytes] = {}
        self._bytes_of_char = byte_level_alphabet()

        added = core.get_added_tokens_decoder()
        special = {token.content: (number, token) for number, token in added.items() if token.special}
        longest = max(map(len, special), default=0)
        if longest > _LONGEST_CONTROL:
            raise FormatError(
                f"{where}: a special token has {longest:,} characters; expected at most {_LONGEST_CONTROL}"
            )
        self._controls = ControlTokens(special)
        longest_first = sorted(special.values(), key=lambda item: len(item[1].content), reverse=True)
        self._control_ids = [number for number, _ in longest_first]
        self._control_pattern = re.compile("|".join(_pattern(token) for _, token in longest_first) or "(?!)")

        self._special_names = {
            key: token for key in ("bos_token", "eos_token") if (token := self._named_token(settings, key))
        }
        self._prefix = self._template_prefix()
        bos = self.token_to_id(self._special_names.get("bos_token", ""))
        if not self._prefix and bos is not None and settings.get("add_bos_token") is not False:
            self._prefix = [bos]
        self.chat_template = self._find_chat_template(settings)

    @classmethod
    def from_directory(cls, directory: Path | str) -> Tokenizer | None:
        """The tokenizer of a checkpoint folder; None if it brings none.

        Reads `tokenizer.json`, else a `tokenizer.model` as Meta publishes for Llama 3; beside it
        `tokenizer_config.json` and `chat_template.jinja`, which goes before the former's template.

        Raises:
            FormatError: a file is damaged.
            UnsupportedError: a kind of tokenizer file that is not read.
        """
        directory = Path(directory)
        path = directory / "tokenizer_config.json"
        settings = read_json_object(path) if path.is_file() else {}
        template = directory / "chat_template.jinja"
        if template.is_file():
            settings["chat_template"] = _read_text(template)
        path = directory / "tokenizer.json"
        if path.is_file():
            return cls.from_json(_read_text(path), settings, str(directory))
        path = directory / "tokenizer.model"
        if path.is_file():
            return cls(read_tiktoken(path), {"bos_token": "<|begin_of_text|>"} | settings, str(directory))
        return None

    @classmethod
    def from_json(
        cls, text: str, settings: Mapping[str, Any] | None = None, where: str = "tokenizer"
    ) -> Tokenizer:
        """The tokenizer that the content of a `tokenizer.json` describes; the rest as in the constructor."""
        core = _guarded(lambda: tokenizers.Tokenizer.from_str(text), where)
        return _guarded(lambda: cls(core, settings, where), where)

    def to_json(self) -> str:
        """The content of a `tokenizer.json` for this tokenizer."""
        text: str = self._core.to_str()
        return text

    @property
    def bos_token_id(self) -> int | None:
        """The id that `encode` puts first; None if nothing is put there."""
        return self._prefix[0] if self._prefix else None

    def token_to_id(self, token: str) -> int | None:
        """The id of a token's exact string, control tokens included."""
        found: int | None = self._core.token_to_id(token)
        return found

    def encode(self, text: str, add_bos: bool = True, special: bool = False) -> list[int]:
        """The ids of a text.

        Args:
            add_bos: put the beginning-of-text token first, unless it stands there already.
            special: read control tokens in `text` as such. Leave it off for text from strangers.
        Raises:
            InputError: the text holds half a surrogate pair.
        """
        ids = self._encode_controls(text, lambda part: part) if special else self._encode_plain(text)
        return self._with_prefix(ids) if add_bos else ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids, control tokens included; bytes that are no UTF-8 become U+FFFD.

        Ids without a token (holes, ids from vocab_size on) give nothing.

        Raises:
            InputError: a negative id, or one beyond 32 bits.
        """
        try:
            text: str = self._core.decode(list(ids), skip_special_tokens=False)
        except (OverflowError, TypeError) as error:
            raise InputError(f"ids cannot be decoded: {error}") from None
        return text

    def stream(self) -> Detokenizer:
        """A detokenizer for one answer: its pieces together are what `decode` gives."""
        if self._byte_level:
            return ByteLevelDetokenizer(self._token_bytes)
        return RunDetokenizer(self.decode, self._core.id_to_token)

    def render_chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation as the chat template writes it, to be looked at.

        Encode a conversation with `chat`: in this text users' and template's control tokens look alike.
        """
        return self.seal_chat(messages, add_generation_prompt).text

    def chat(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> list[int]:
        """The ids of a conversation. Control tokens in contents are plain text.

        Args:
            messages: {"role": "system" | "user" | "assistant", "content": text}, oldest first.
            add_generation_prompt: end with what makes the model answer.
        Raises:
            InputError: messages that are malformed or that the template refuses.
            FormatError: the template is broken.
            UnsupportedError: there is no template.
        """
        return self.encode_chat(self.seal_chat(messages, add_generation_prompt))

    def seal_chat(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> RenderedChat:
        """`chat` up to the ids; raises what `chat` raises."""
        if self.chat_template is None:
            raise UnsupportedError(
                f"{self.where}: no chat template (tokenizer_config.json or chat_template.jinja); "
                "this model continues text, give it a plain prompt"
            )
        sealed, seals = self._controls.seal(messages)
        text = self.chat_template.render(sealed, add_generation_prompt, self._special_names)
        return RenderedChat(text, seals)

    def encode_chat(self, rendered: RenderedChat, add_bos: bool = True) -> list[int]:
        """The ids of a rendered conversation or, without `add_bos`, of a later part of it."""
        ids = self._encode_controls(rendered.sealed, rendered.unseal)
        return self._with_prefix(ids) if add_bos else ids

    def _encode_plain(self, text: str) -> list[int]:
        try:
            return list(self._core.encode(text, add_special_tokens=False).ids)
        except (UnicodeEncodeError, TypeError) as error:
            raise InputError(f"text cannot be encoded: {error}") from None

    def _encode_controls(self, text: str, unseal: Callable[[str], str]) -> list[int]:
        ids: list[int] = []
        start = 0
        for match in self._control_pattern.finditer(text):
            if match.start() > start:
                ids += self._encode_plain(unseal(text[start : match.start()]))
            assert match.lastindex is not None
            ids.append(self._control_ids[match.lastindex - 1])
            start = match.end()
        if start < len(text):
            ids += self._encode_plain(unseal(text[start:]))
        return ids

    def _with_prefix(self, ids: list[int]) -> list[int]:
        return ids if ids[: len(self._prefix)] == self._prefix else self._prefix + ids

    def _template_prefix(self) -> list[int]:
        """What the file's post-processor puts before a text: the special ids before the first other."""
        probe = self._core.encode("a", add_special_tokens=True)
        if not any(mask == 0 for mask in probe.special_tokens_mask):
            return []
        return list(probe.ids[: probe.special_tokens_mask.index(0)])

    def _named_token(self, settings: Mapping[str, Any], key: str) -> str | None:
        value = settings.get(key)
        token = value.get("content") if isinstance(value, Mapping) else value
        if token is None:
            return None
        if not isinstance(token, str) or self._core.token_to_id(token) is None:
            raise FormatError(
                f"{self.where}: tokenizer_config.json: {key} {token!r} is not in the vocabulary"
            )
        return token

    def _find_chat_template(self, settings: Mapping[str, Any]) -> ChatTemplate | None:
        source = settings.get("chat_template")
        if isinstance(source, list):  # several named ones
            default = (i for i in source if isinstance(i, Mapping) and i.get("name") == "default")
            source = next(default, {}).get("template")
        if source is None and all(self.token_to_id(token) == number for token, number in _LLAMA3.items()):
            source = CHAT_TEMPLATE_2B4T
        if source is None:
            return None
        if not isinstance(source, str):
            raise FormatError(f"{self.where}: chat_template is {type(source).__name__}, expected text")
        return ChatTemplate(source, self.where)

    def _token_bytes(self, token: int) -> bytes:
        found = self._bytes.get(token)
        if found is None:
            try:
                text = self._core.id_to_token(token) or ""
            except OverflowError as error:
                raise InputError(f"ids cannot be decoded: {error}") from None
            values = [self._bytes_of_char.get(char) for char in text]
            found = text.encode() if None in values else bytes(v for v in values if v is not None)
            self._bytes[token] = found
        return found


def _is_byte_level(core: tokenizers.Tokenizer, where: str) -> bool:
    if core.decoder is None:
        return False
    state = json.loads(core.decoder.__getstate__())
    steps = state["decoders"] if state["type"] == "Sequence" else [state]
    kinds = [step["type"] for step in steps]
    if "ByteLevel" in kinds and len(kinds) > 1:
        raise UnsupportedError(
            f"{where}: decoder {' + '.join(kinds)} cannot be streamed; use ByteLevel alone"
        )
    return "ByteLevel" in kinds


def _pattern(token: tokenizers.AddedToken) -> str:
    """Finds a control token, with the white space it swallows; one group."""
    space = r"\s*"
    return f"{space if token.lstrip else ''}({re.escape(token.content)}){space if token.rstrip else ''}"


def _guarded(build: Callable[[], _T], where: str) -> _T:
    """Run the Rust library on a stranger's file: it reports with bare exceptions, or panics."""
    try:
        return build()
    except BaseException as error:
        # A panic is a BaseException of a class that cannot be imported.
        if type(error) is Exception or type(error).__name__ == "PanicException":
            reason = " ".join(str(error).split())[:200]
            raise FormatError(f"{where}: not a usable tokenizer ({reason})") from None
        raise


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: not readable ({error})") from None
