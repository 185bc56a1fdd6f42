"""Stored tensors as `Tensor`s that are decoded whenever their data is asked for.

A reader thus holds no more than the tensor it looks at, however many the file has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import UnsupportedError
from bitnet.formats.gguf import float_blocks, ternary_blocks
from bitnet.formats.gguf.block_types import BF16, F16, F32, TERNARY
from bitnet.formats.gguf.container import StoredTensor
from bitnet.formats.tensor import NUMPY_DTYPES, Tensor
from bitnet.quantize.bfloat16 import narrow

_PLAIN = {F32.name: "F32", F16.name: "F16", BF16.name: "BF16"}
_CHUNK = 1 << 20  # elements looked at in one go


class TernaryTensor(Tensor):
    """A ternary matrix as the packed U8 tensor (rows / 4, columns)."""

    def __init__(self, stored: StoredTensor) -> None:
        rows, columns = stored.shape
        object.__setattr__(self, "dtype", "U8")
        object.__setattr__(self, "shape", (rows // 4, columns))
        object.__setattr__(self, "stored", stored)

    stored: StoredTensor

    @property
    def data(self) -> NDArray[Any]:  # decoded anew each time
        return ternary_blocks.to_packed(self.stored.type, self.stored.raw, *self.stored.shape)


class QuantizedTensor(Tensor):
    """A matrix of Q8_0, Q6_K or Q4_K as an F32 tensor."""

    def __init__(self, stored: StoredTensor) -> None:
        object.__setattr__(self, "dtype", "F32")
        object.__setattr__(self, "shape", stored.shape)
        object.__setattr__(self, "stored", stored)

    stored: StoredTensor

    @property
    def data(self) -> NDArray[Any]:  # decoded anew each time
        return self.rows(0, self.shape[0]).data

    def float32(self) -> NDArray[np.float32]:
        return self.data  # nobody else has it: no copy needed

    def rows(self, start: int, end: int) -> Tensor:
        blocks = self._blocks()
        in_row = len(blocks) // self.shape[0]
        values = np.empty(((end - start) * in_row, self.stored.type.elements), np.float32)
        step = max(1, _CHUNK // self.stored.type.elements)
        for first in range(0, len(values), step):
            part = blocks[start * in_row + first : min(start * in_row + first + step, end * in_row)]
            values[first : first + step] = float_blocks.decode(self.stored.type, part)
        return Tensor("F32", (end - start, *self.shape[1:]), values.reshape(end - start, *self.shape[1:]))

    def find_non_finite(self) -> int | None:
        """From the blocks' scales alone: all other numbers are integers, and float32 holds every product."""
        scales = float_blocks.scales(self.stored.type, self._blocks())
        bad = np.flatnonzero(~np.isfinite(scales).all(axis=1))
        return int(bad[0]) * self.stored.type.elements if bad.size else None

    def _blocks(self) -> NDArray[np.uint8]:
        return self.stored.raw.reshape(-1, self.stored.type.bytes)


def float_tensor(stored: StoredTensor) -> Tensor:
    """A norm, bias, embedding or head; plain floats are the mapped bytes."""
    if stored.type.name not in _PLAIN:
        return QuantizedTensor(stored)
    dtype = _PLAIN[stored.type.name]
    data = stored.raw.view(NUMPY_DTYPES[dtype]).reshape(stored.shape)
    return Tensor(dtype, stored.shape, data if data.flags.aligned else data.copy())


def ternary_tensor(stored: StoredTensor, where: str) -> TernaryTensor:
    """A projection.

    Raises:
        UnsupportedError: it is no ternary matrix.
    """
    if stored.type not in TERNARY:
        types = ", ".join(kind.name for kind in TERNARY)
        raise UnsupportedError(
            f"{where}: {stored.name} is {stored.type.name}; the projections of a ternary model are {types}. "
            "Take the model's safetensors, or convert it with the program that made it"
        )
    if len(stored.shape) != 2 or stored.shape[0] % 4:
        raise UnsupportedError(
            f"{where}: {stored.name} has shape {list(stored.shape)}; expected a matrix of a multiple of 4 "
            "rows"
        )
    return TernaryTensor(stored)


def as_bfloat16(tensor: Tensor) -> Tensor:
    """An F16 tensor as BF16 where that is exact, else as it is.

    Published masters are bfloat16, and float16 made of those always fits: rounding to a coarser grid never
    needs more digits. The engines read bfloat16 in place and would have to widen float16.
    """
    if tensor.dtype != "F16" or not tensor.fits_bfloat16():
        return tensor
    bits = np.empty(tensor.shape, np.uint16)
    flat, source = bits.reshape(-1), tensor.data.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        flat[start : start + _CHUNK] = narrow(source[start : start + _CHUNK].astype(np.float32))
    return Tensor("BF16", tensor.shape, bits)
