"""The activation quantisers: integer codes and one factor a token, x is approximately codes / scale.

    int8         codes = clip(round(x s), -128, 127)   s = 127 / max|x|      arXiv 2402.17764
    int8-top50   the same, of the half of x that is largest in magnitude     arXiv 2411.04965
    int4         codes = clip(round(x s), -8, 7)       s = √7 / mean|x|      arXiv 2411.04965
    fp4          codes = 2 E2M1(x s / 2)               s = 12 / max|x|       arXiv 2411.04965
    int1         codes = +1 where x > 0, else -1       s = 1 / mean|x|       arXiv 1603.05279 (XNOR-Net)

Maxima and means are over the last axis and at least 1e-5. All is float32 and half-to-even; means are summed
in float64, so that no order of summation moves a code. The largest half are all values that are not smaller
in magnitude than the ⌈n/2⌉-th: equal ones stay together, and no order of sorting matters. E2M1 has the
magnitudes 0, ½, 1, 1½, 2, 3, 4 and 6, a tie goes to the even mantissa; twice them are integers, so that every
quantiser ends in an exact integer product.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from bitnet.quant_config import InputKind

MIN_ABSMAX = 1e-5  # an all-zero token quantises to zeros instead of dividing by zero

Quantized = tuple[NDArray[np.int8], NDArray[np.float32]]


def quantize_activations(x: NDArray[np.floating], kind: InputKind) -> Quantized:
    """Quantise activations, one scale for each vector along the last axis.

    Args:
        x: float, (..., k); computed in float32.
    Returns:
        codes int8 (..., k) and scale float32 (..., 1); codes / scale approximates x.
    Raises:
        ValueError: x has no axis, k is 0, or x holds NaN or infinity.
    """
    values = np.asarray(x, dtype=np.float32)
    if values.ndim == 0 or values.shape[-1] == 0:
        raise ValueError(f"x has shape {values.shape}; expected (..., k) with k >= 1")
    if not np.isfinite(values).all():
        raise ValueError("x holds NaN or infinity")
    return _QUANTIZERS[kind](values)


def quantize_int8(x: NDArray[np.floating]) -> Quantized:
    """`quantize_activations` of b1.58: int8, absolute maximum."""
    return quantize_activations(x, "int8")


def _int8(values: NDArray[np.float32]) -> Quantized:
    scale = np.float32(127) / _largest(values)
    return np.clip(np.rint(values * scale), -128, 127).astype(np.int8), scale


def _int8_top50(values: NDArray[np.float32]) -> Quantized:
    magnitudes = np.abs(values)
    dropped = values.shape[-1] // 2
    least = np.partition(magnitudes, dropped, axis=-1)[..., dropped, None]
    return _int8(np.where(magnitudes >= least, values, np.float32(0)))


def _int4(values: NDArray[np.float32]) -> Quantized:
    scale = np.float32(math.sqrt(7)) / _mean(values)
    return np.clip(np.rint(values * scale), -8, 7).astype(np.int8), scale


def _fp4(values: NDArray[np.float32]) -> Quantized:
    scale = np.float32(12) / _largest(values)
    doubled = values * scale  # from -12 to 12, or next to it
    magnitudes = np.abs(doubled)
    step = np.where(magnitudes < 4, 1, np.where(magnitudes < 8, 2, 4)).astype(np.float32)
    return np.clip(np.rint(doubled / step) * step, -12, 12).astype(np.int8), scale


def _int1(values: NDArray[np.float32]) -> Quantized:
    return np.where(values > 0, np.int8(1), np.int8(-1)), np.float32(1) / _mean(values)


def _largest(values: NDArray[np.float32]) -> NDArray[np.float32]:
    largest: NDArray[np.float32] = np.abs(values).max(axis=-1, keepdims=True)
    return np.maximum(largest, np.float32(MIN_ABSMAX), out=largest)


def _mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
    mean = np.abs(values).mean(axis=-1, dtype=np.float64, keepdims=True).astype(np.float32)
    bounded: NDArray[np.float32] = np.maximum(mean, np.float32(MIN_ABSMAX))
    return bounded


_QUANTIZERS: dict[InputKind, Callable[[NDArray[np.float32]], Quantized]] = {
    "int8": _int8,
    "int8-top50": _int8_top50,
    "int4": _int4,
    "fp4": _fp4,
    "int1": _int1,
}
