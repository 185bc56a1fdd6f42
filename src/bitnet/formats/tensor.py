"""Tensor: an array as it lies in a file, bfloat16 included."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.quantize.bfloat16 import narrow, widen

# safetensors' names. NumPy has no bfloat16: its bits are held as uint16.
NUMPY_DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
FLOATS = ("BF16", "F16", "F32")

# A float's bits as an unsigned number: dtype, mask that drops the sign, pattern of infinity. What is not
# below that pattern is infinity or NaN.
_BITS: dict[str, tuple[type[np.unsignedinteger[Any]], int, int]] = {
    "BF16": (np.uint16, 0x7FFF, 0x7F80),
    "F16": (np.uint16, 0x7FFF, 0x7C00),
    "F32": (np.uint32, 0x7FFFFFFF, 0x7F800000),
}
_BLOCK = 1 << 17  # elements looked at in one go: temporaries stay in the L2 cache


@dataclass(frozen=True)
class Tensor:
    """An array with its safetensors dtype.

    Attributes:
        dtype: safetensors' name: BF16, F16, F32, U8, …
        shape: as stored.
        data: little-endian, of `shape`; BF16 as uint16. Read-only where it is mapped from a file.
    """

    dtype: str
    shape: tuple[int, ...]
    data: NDArray[Any]

    @classmethod
    def of(cls, array: NDArray[Any], dtype: str | None = None) -> Tensor:
        """Wrap a NumPy array; `dtype="BF16"` rounds float32 values to bfloat16."""
        if dtype == "BF16":
            return cls("BF16", array.shape, narrow(array))
        names = {numpy: name for name, numpy in NUMPY_DTYPES.items() if name != "BF16"}
        return cls(names[array.dtype], array.shape, array)

    def float32(self) -> NDArray[np.float32]:
        """The values as float32, exact for BF16, F16 and F32."""
        return widen(self.data) if self.dtype == "BF16" else self.data.astype(np.float32)

    @property
    def nbytes(self) -> int:
        """What `data` takes."""
        return math.prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize

    def rows(self, start: int, end: int) -> Tensor:
        """The tensor [start:end] along the first axis; nothing is copied where it is mapped."""
        part = self.data[start:end]
        return Tensor(self.dtype, part.shape, part)

    def fits_bfloat16(self) -> bool:
        """Whether bfloat16 holds every value of a BF16, F16 or F32 tensor exactly."""
        if self.dtype == "BF16":
            return True
        count = self.shape[0]
        step = max(1, _BLOCK * count // max(1, math.prod(self.shape)))
        for start in range(0, count, step):
            bits = self.rows(start, min(start + step, count)).float32().view(np.uint32)
            if (bits & np.uint32(0xFFFF)).any():
                return False
        return True

    def find_non_finite(self) -> int | None:
        """Flat index of the first NaN or infinity of a BF16, F16 or F32 tensor, or None."""
        unsigned, mask, infinity = _BITS[self.dtype]
        bits = self.data.reshape(-1).view(unsigned)
        for start in range(0, bits.size, _BLOCK):
            magnitude = bits[start : start + _BLOCK] & unsigned(mask)
            if magnitude.max() >= infinity:
                return start + int(np.flatnonzero(magnitude >= infinity)[0])
        return None
