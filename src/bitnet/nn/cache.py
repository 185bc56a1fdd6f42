"""Keys and values of one sequence, float32, rotated already."""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet.config import ModelConfig
from bitnet.errors import InputError


class KeyValueCache:
    """Room for `capacity` tokens in every layer.

    A forward pass writes each layer's new rows behind `length`, then moves `length` once at its end: a
    pass that fails half-way leaves the cache as it was.
    """

    def __init__(self, config: ModelConfig, capacity: int) -> None:
        """Raises InputError: `capacity` is not in 1..config.max_position_embeddings."""
        if not 1 <= capacity <= config.max_position_embeddings:
            raise InputError(
                f"max_tokens is {capacity}; a cache of this model holds 1 to "
                f"{config.max_position_embeddings} tokens (max_position_embeddings)"
            )
        shape = (config.num_hidden_layers, 1, config.num_key_value_heads, capacity, config.head_dim)
        self._keys, self._values = torch.empty(shape), torch.empty(shape)
        self._length = 0
        self.config = config

    @property
    def length(self) -> int:
        """Tokens held: the position of the next token."""
        return self._length

    @property
    def capacity(self) -> int:
        """Most tokens it can hold."""
        return int(self._keys.shape[3])

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on.

        Raises:
            InputError: `length` is negative or beyond what is held.
        """
        if not 0 <= length <= self._length:
            raise InputError(f"cannot truncate to {length} tokens; the cache holds {self._length}")
        self._length = length

    def extend(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write one layer's new rows (1, kv_heads, new, head_dim); returns all of its rows so far."""
        end = self._length + keys.shape[2]
        self._keys[layer, :, :, self._length : end] = keys
        self._values[layer, :, :, self._length : end] = values
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Count `tokens` new ones as held, after every layer was extended by them."""
        self._length += tokens
