"""Keys and values of one sequence, rotated already.

They are held in float32. Where the configuration asks for fewer bits (`kv_bits`), they are what the codes of
`bitnet.quantize.kv_cache` stand for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bitnet.config import ModelConfig
from bitnet.errors import InputError
from bitnet.quantize.kv_cache import LARGEST, bits_at


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
        for held, rows in ((self._keys, keys), (self._values, values)):
            held[layer, :, :, self._length : end] = self._rounded(rows)
        return self._keys[layer, :, :, :end], self._values[layer, :, :, :end]

    def _rounded(self, rows: Tensor) -> Tensor:
        bits = self.config.quantization.kv_bits
        if bits == 16:
            return rows
        rounded = round_heads(rows, bits)
        if self._length == 0:
            rounded[:, :, 0] = round_heads(rows[:, :, 0], bits_at(0, bits))
        return rounded

    def advance(self, tokens: int) -> None:
        """Count `tokens` new ones as held, after every layer was extended by them."""
        self._length += tokens


def round_heads(x: Tensor, bits: int) -> Tensor:
    """What `restore_head(*quantize_head(x, bits), bits)` of bitnet.quantize.kv_cache gives, bit for bit.

    Args:
        x: float, (..., head_dim); computed in float32.
        bits: 3, 4 or 8.
    """
    x = x.float()
    low, high = (
        # -0 becomes +0, and a head with NaN or infinity NaN
        (end.clamp(-float(LARGEST), float(LARGEST)) + (0 * x.abs()).sum(-1, keepdim=True)).half().float()
        for end in (x.amin(-1, keepdim=True), x.amax(-1, keepdim=True))
    )
    width = high - low
    factor = torch.where(width > 0, 2.0**bits / width, 0.0)
    codes = ((x - low) * factor - 0.5).round().clamp(0, 2**bits - 1)
    step = width * 2.0**-bits
    return codes * step + (low + step * 0.5)
