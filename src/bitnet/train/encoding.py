"""Documents to ids: text as it stands, conversations through the tokenizer's chat template.

Text is text: a control token that is spelled in a document is encoded letter by letter.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray

from bitnet.errors import BitnetError, InputError
from bitnet.tokenizer import Tokenizer
from bitnet.train.documents import Document, Message, texts
from bitnet.train.tokenizer import id_bound, separator_ids, special_tokens, without_limits

_MOST_DOCUMENTS, _MOST_CHARACTERS = (
    1024,
    1 << 22,
)  # of a batch: enough for every core, some 200 MB of encodings


class Encoder:
    """Encodes documents on all cores.

    Args:
        tokenizer: is copied.
        folder: where the tokenizer's chat template is, for conversations.
        chat_template: the template itself, where there is no folder. Without both, the tokenizer must be
            Llama 3's, whose template is known.
    Raises:
        InputError: the tokenizer has no token that separates documents.
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        folder: Path | None = None,
        chat_template: str | None = None,
    ) -> None:
        self._core = without_limits(tokenizer)
        self._core.encode_special_tokens = True  # that is: as plain text
        self._folder, self._chat_template = folder, chat_template
        self.separator = separator_ids(tokenizer)
        self.vocab_size = id_bound(tokenizer)

    def encode(self, documents: Sequence[Document]) -> list[NDArray[np.int64]]:
        """The ids of each document, int64, the separator first.

        Raises:
            InputError: a conversation that cannot be rendered.
        """
        plain = [document for document in documents if isinstance(document, str)]
        chats = [document for document in documents if not isinstance(document, str)]
        encoded = iter(self._core.encode_batch_fast(plain, add_special_tokens=False))
        if chats:
            # A foreign template renders in a process of its own, for which a thread can wait.
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                rendered = iter(list(pool.map(self._chat, chats)))
        rows = []
        for document in documents:
            ids = next(encoded).ids if isinstance(document, str) else next(rendered)
            rows.append(np.array([*self.separator, *ids], np.int64))
        return rows

    def _chat(self, messages: list[Message]) -> list[int]:
        begin = messages[0]["content"][:40]
        if self._template.chat_template is None:
            raise InputError(
                f"the conversation that begins {begin!r}: the tokenizer has no chat template; put a "
                "chat_template.jinja beside its tokenizer.json"
            )
        try:
            rendered = self._template.seal_chat(messages, add_generation_prompt=False)
            ids = self._template.encode_chat(rendered, add_bos=False)
        except BitnetError as error:
            raise InputError(f"the conversation that begins {begin!r}: {error}") from None
        return (
            ids[1:] if ids[:1] == [self.separator[-1]] else ids
        )  # a template may write the beginning itself

    @cached_property
    def _template(self) -> Tokenizer:
        found = Tokenizer.from_directory(self._folder) if self._folder else None
        settings = special_tokens(self._core) | {"chat_template": self._chat_template}
        return found or Tokenizer(without_limits(self._core), settings)


def in_batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Lists of documents that are worth encoding at once and take little memory."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += sum(map(len, texts(document)))
        if len(batch) >= _MOST_DOCUMENTS or characters >= _MOST_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
