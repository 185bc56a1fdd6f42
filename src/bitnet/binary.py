"""Fast products of one-bit and ternary weights with activations of 1 to 8 bits, exact in int32.

    weights = BinaryMatrix(pack_signs(w), columns)        # packed once
    y = weights.multiply_signs(pack_signs(x))             # W1A1 by XNOR and popcount
    y = weights.multiply_int8(codes)                      # W1A8
    weights = TernaryMatrix(plus, minus, columns)         # plus - minus
    y = weights.multiply_planes(pack_planes(codes, 4))    # ternary by 4-bit, plane by plane

The layouts and formulas are those of `bitnet.quantize.binary`, which computes the same integers slowly. The
kernels (docs/kernels.md) go with the instruction set that `isa` or BITNET_ISA names.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet import _core
from bitnet.cpu_model import thread_count
from bitnet.errors import InputError
from bitnet.quantize.binary import MAX_BITS


def pack_signs(
    x: NDArray[np.float32], *, threads: int | None = None, isa: str | None = None
) -> NDArray[np.uint8]:
    """The signs of activations, one bit each: 1 where x > 0.

    Args:
        x: float32, (tokens, columns).
        threads: None takes BITNET_THREADS, and the number of physical cores where it is unset.
        isa: an instruction set of `bitnet doctor`; None takes BITNET_ISA, else the best of this CPU.
    Returns:
        uint8, (tokens, ceil(columns / 8)), as `bitnet.quantize.binary.pack_signs`.
    Raises:
        InputError: another type or shape, a NaN, or an impossible `threads` or `isa`.
    """
    values = _array(x, np.float32, 2, "x", "(tokens, columns)")
    try:
        return _core.pack_signs(values, _pool(threads, isa))
    except ValueError as error:
        raise InputError(str(error)) from None


def pack_planes(
    codes: NDArray[np.int8], bits: int, *, threads: int | None = None, isa: str | None = None
) -> NDArray[np.uint8]:
    """The bit planes of activations.

    Args:
        codes: int8 in -2^(bits-1) .. 2^(bits-1) - 1, (tokens, columns).
        bits: 2 to 8.
        threads, isa: as for `pack_signs`.
    Returns:
        uint8, (tokens, bits, ceil(columns / 8)), as `bitnet.quantize.binary.pack_planes`.
    Raises:
        InputError: another type or shape, a code out of range, or an impossible `bits`, `threads` or `isa`.
    """
    values = _array(codes, np.int8, 2, "codes", "(tokens, columns)")
    if not 2 <= bits <= MAX_BITS:
        raise InputError(f"{bits} bits; expected 2 to {MAX_BITS} (one bit a value is pack_signs)")
    try:
        return _core.pack_planes(values, bits, _pool(threads, isa))
    except ValueError as error:
        raise InputError(f"codes of {bits} bits: {error}") from None


class _BitMatrix:
    """What both kinds of weights share. Threads of the caller take turns."""

    _matrix: _core.BitMatrix

    def __init__(self, rows: int, columns: int) -> None:
        self.rows = rows
        self.columns = columns

    def multiply_signs(self, x: NDArray[np.uint8]) -> NDArray[np.int32]:
        """The product with signs.

        Args:
            x: uint8, (tokens, ceil(columns / 8)), from `pack_signs`.
        Returns:
            int32, (tokens, rows).
        Raises:
            InputError: another type or shape.
        """
        signs = _array(x, np.uint8, 2, "x", "(tokens, bytes)")
        self._check_bytes(signs)
        return self._matrix.multiply_signs(signs)

    def multiply_planes(self, x: NDArray[np.uint8]) -> NDArray[np.int32]:
        """The product with codes of 2 to 8 bits.

        Args:
            x: uint8, (tokens, bits, ceil(columns / 8)), from `pack_planes`.
        Returns:
            int32, (tokens, rows).
        Raises:
            InputError: another type or shape.
        """
        planes = _array(x, np.uint8, 3, "x", "(tokens, bits, bytes)")
        self._check_bytes(planes)
        if not 2 <= planes.shape[1] <= MAX_BITS:
            raise InputError(f"x has {planes.shape[1]} planes; expected 2 to {MAX_BITS}")
        return self._matrix.multiply_planes(planes)

    def _check_bytes(self, x: NDArray[np.uint8]) -> None:
        row_bytes = -(-self.columns // 8)
        if x.shape[-1] != row_bytes:
            raise InputError(
                f"x has shape {x.shape}; expected rows of {row_bytes} bytes ({self.columns} columns)"
            )


class BinaryMatrix(_BitMatrix):
    """Weights -1 and +1, arranged for the kernels.

    Args:
        packed: uint8, (rows, ceil(columns / 8)), as `pack_signs` makes them; bits beyond the last column are
            ignored.
        columns: the number of inputs, below 2^24.
        threads, isa: as for `pack_signs`.
    Raises:
        InputError: another type or shape, or an impossible `threads` or `isa`.
    """

    def __init__(
        self, packed: NDArray[np.uint8], columns: int, *, threads: int | None = None, isa: str | None = None
    ) -> None:
        bits = _array(packed, np.uint8, 2, "packed", "(rows, bytes)")
        super().__init__(bits.shape[0], columns)
        self._matrix = _make(_core.BitMatrix.binary, (bits,), columns, threads, isa)

    def multiply_int8(self, codes: NDArray[np.int8]) -> NDArray[np.int32]:
        """The product with int8 activations, by the kernels of binary models.

        Many tokens are multiplied by tables, twice as fast, where the instruction set has them and no code is
        -128. The first call arranges the weights for these kernels: another bit a weight from then on.

        Args:
            codes: int8, (tokens, columns).
        Returns:
            int32, (tokens, rows).
        Raises:
            InputError: another type or shape.
        """
        values = _array(codes, np.int8, 2, "codes", "(tokens, columns)")
        if values.shape[1] != self.columns:
            raise InputError(f"codes have {values.shape[1]} columns; the weights have {self.columns}")
        return self._matrix.multiply_int8(values)


class TernaryMatrix(_BitMatrix):
    """Weights -1, 0 and +1 as two binary matrices, plus - minus, arranged for the kernels.

    Args:
        plus: uint8, (rows, ceil(columns / 8)): ones where the weight is +1, in the layout of `pack_signs`.
        minus: ones where it is -1, same shape. Bits beyond the last column are ignored.
        columns: the number of inputs, below 2^24.
        threads, isa: as for `pack_signs`.
    Raises:
        InputError: another type or shape, a weight that is both, or an impossible `threads` or `isa`.
    """

    def __init__(
        self,
        plus: NDArray[np.uint8],
        minus: NDArray[np.uint8],
        columns: int,
        *,
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        positive = _array(plus, np.uint8, 2, "plus", "(rows, bytes)")
        negative = _array(minus, np.uint8, 2, "minus", "(rows, bytes)")
        super().__init__(positive.shape[0], columns)
        self._matrix = _make(_core.BitMatrix.ternary, (positive, negative), columns, threads, isa)


def _make(
    maker: Callable[..., _core.BitMatrix],
    bits: tuple[NDArray[np.uint8], ...],
    columns: int,
    threads: int | None,
    isa: str | None,
) -> _core.BitMatrix:
    try:
        return maker(*bits, columns, _pool(threads, isa))
    except (ValueError, TypeError) as error:
        shapes = " and ".join(str(array.shape) for array in bits)
        reason = str(error) if isinstance(error, ValueError) else "columns must be a whole number"
        raise InputError(f"bits of shape {shapes} with {columns} columns: {reason}") from None


def _array(array: NDArray[Any], dtype: type[np.generic], ndim: int, name: str, shape: str) -> NDArray[Any]:
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != ndim:
        found = (
            f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        )
        raise InputError(f"{name} is {found}; expected {np.dtype(dtype).name} {shape}")
    return np.ascontiguousarray(array)


def _pool(threads: int | None, isa: str | None) -> _core.BitPool:
    return _shared_pool(thread_count(threads), isa or os.environ.get("BITNET_ISA", ""))


@lru_cache(maxsize=8)
def _shared_pool(threads: int, isa: str) -> _core.BitPool:
    """The threads that all arrays with the same wishes share."""
    try:
        return _core.BitPool(threads, isa)
    except (ValueError, TypeError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"threads is {threads!r}"
        raise InputError(reason) from None
