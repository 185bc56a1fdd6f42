"""Room for the next tokens in a cache of transformers'.

`DynamicLayer.update` copies all keys and values for every new token. Here they are the beginning of a larger
buffer, into whose next position the kernels write. Whatever else is done with the cache (cropped, reordered,
copied, repeated) puts other tensors into the layer, and the next token begins a buffer anew.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

_POSITIONS = 32  # added at a time: 2B4T's 30 layers take 2.5 MB in bfloat16


class CacheRoom:
    """The buffers of one layer of one cache.

    Attributes:
        keys, values: (sequences, kv heads, capacity, head_dim).
        length: positions in use.
    """

    def __init__(self, layer: DynamicLayer) -> None:
        self._layer = layer
        self.length = layer.keys.shape[2]
        self.keys, self.values = (self._enlarged(tensor) for tensor in (layer.keys, layer.values))
        self._seen: tuple[Tensor, Tensor] | None = None

    def _enlarged(self, tensor: Tensor) -> Tensor:
        sequences, heads, length, width = tensor.shape
        larger = tensor.new_empty(sequences, heads, length + _POSITIONS, width)
        larger[:, :, :length] = tensor
        return larger

    def is_current(self) -> bool:
        """Whether the layer still holds what `take` put there, and one more position is free."""
        layer, seen = self._layer, self._seen
        unchanged = seen is not None and layer.keys is seen[0] and layer.values is seen[1]
        return unchanged and self.length < self.keys.shape[2]

    def take(self) -> None:
        """Count the position behind the last one as part of the cache."""
        self.length += 1
        seen = self.keys[:, :, : self.length], self.values[:, :, : self.length]
        self._layer.keys, self._layer.values = self._seen = seen


def find_room(cache: Any, index: int, shape: tuple[int, int, int], like: Tensor) -> CacheRoom | None:
    """The room of layer `index` of the cache, with a free position.

    Args:
        shape: sequences, key/value heads, head_dim.
        like: of the dtype and on the device that keys and values must have.
    Returns:
        None for a cache that is not a plain growing one, or holds nothing that fits.
    """
    if type(cache) is not DynamicCache or len(cache.layers) <= index or getattr(cache, "offloading", False):
        return None
    layer = cache.layers[index]
    if type(layer) is not DynamicLayer or not layer.is_initialized or layer.keys.dim() != 4:
        return None
    room: CacheRoom | None = layer.__dict__.get("_bitnet_room")
    if room is None or room._layer is not layer or not room.is_current():
        keys, values = layer.keys, layer.values
        sequences, heads, width = shape
        if keys.shape != (sequences, heads, keys.shape[2], width) or values.shape != keys.shape:
            return None
        if any(tensor.dtype != like.dtype or tensor.device != like.device for tensor in (keys, values)):
            return None
        room = layer._bitnet_room = CacheRoom(layer)
    return room
