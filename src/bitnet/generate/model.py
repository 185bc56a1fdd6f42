"""The one protocol every engine implements, and everything above an engine relies on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bitnet.config import ModelConfig
from bitnet.tokenizer import Tokenizer


class Cache(Protocol):
    """The keys and values of one sequence. Only the engine that made it can read it."""

    @property
    def length(self) -> int:
        """Tokens held: the position of the next token."""
        ...

    @property
    def capacity(self) -> int:
        """Most tokens it can hold (`max_tokens` of `new_cache`)."""
        ...

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on.

        Raises:
            InputError: `length` is negative or beyond what is held.
        """
        ...


class Model(Protocol):
    """A loaded model: weights and an engine that runs them.

    `tokenizer` is None where the checkpoint brings none; such a model takes and gives ids only.
    `stop_tokens` end an answer.
    """

    @property
    def config(self) -> ModelConfig: ...

    @property
    def tokenizer(self) -> Tokenizer | None: ...

    @property
    def stop_tokens(self) -> frozenset[int]: ...

    def new_cache(self, max_tokens: int) -> Cache:
        """An empty cache for one sequence of at most `max_tokens` tokens.

        Raises:
            InputError: `max_tokens` is not in 1..config.max_position_embeddings.
        """
        ...

    def forward(
        self, batch: Sequence[tuple[Cache, Sequence[int]]], all_logits: bool = False
    ) -> list[NDArray[np.float32]]:
        """Run new tokens of several sequences at once and append them to their caches.

        Args:
            batch: (cache, ids) a sequence, prompts and single tokens mixed; ids is not empty and no cache
                stands in it twice. What a sequence gets does not depend on its company.
            all_logits: logits of every new token instead of the last one.
        Returns:
            float32, one array a sequence: (vocab_size,), or (len(ids), vocab_size) with `all_logits`.
        Raises:
            InputError: an id outside 0..vocab_size-1, empty ids, a cache that is full or given twice.
                Nothing was appended then.
        """
        ...

    def hidden_states(self, batch: Sequence[tuple[Cache, Sequence[int]]]) -> list[NDArray[np.float32]]:
        """`forward` without the head: what the last layer's norm gives for every new token.

        Returns:
            float32, one array a sequence: (len(ids), hidden_size). The logits are its product with the head.
        Raises:
            InputError: as `forward`.
        """
        ...
