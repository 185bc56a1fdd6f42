"""bfloat16 masters for given codes and scale: what quantising them gives is exactly these codes and this
scale.

codes * scale would not do: with a share d of codes beside 0, mean|codes * scale| is d * scale, and that would
be the scale next time. The masters here are 0 or +-scale / d. bfloat16 cannot hold scale / d, so some are its
lower neighbour and some the upper one, as many as make the mean right. Either is at least 0.99 scale, which
rounds to code 1.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import UnsupportedError
from bitnet.quant_config import LinearRecipe
from bitnet.quantize.packing import count_codes
from bitnet.quantize.weights import MIN_SCALE

_CHUNK = 1 << 20  # elements made at once
_SIGN = np.uint16(0x8000)


def master_blocks(packed: NDArray[np.uint8], scale: np.float32, name: str) -> Iterator[NDArray[np.uint16]]:
    """A master matrix (4 rows, columns), row-major, in flat pieces of bfloat16 bits.

    Args:
        packed: uint8 (rows, columns), the layout of `bitnet.quantize.packing`.
        scale: positive.
        name: of the matrix, for messages.
    Raises:
        UnsupportedError: the quantiser could not give this scale back.
    """
    minus, zero, plus, _ = count_codes(packed)
    nonzero = minus + plus
    if nonzero == 0:
        lower, upper, raised = np.uint16(0), np.uint16(0), 0
    else:
        lower, upper, raised = _neighbours(scale, nonzero, zero + nonzero, name)
    flat, seen = packed.reshape(-1), 0
    for i in range(4):
        for start in range(0, flat.size, _CHUNK):
            stored = (flat[start : start + _CHUNK] >> np.uint8(2 * i)) & np.uint8(3)
            bits = np.zeros(stored.size, np.uint16)
            places = np.flatnonzero(stored != 1)
            magnitudes = np.full(places.size, lower)
            magnitudes[: max(0, raised - seen)] = upper
            bits[places] = magnitudes | np.where(stored[places] == 0, _SIGN, np.uint16(0))
            seen += places.size
            yield bits


def masters_of(
    codes: NDArray[np.int8], scales: NDArray[np.float32], recipe: LinearRecipe, name: str
) -> NDArray[np.uint16]:
    """`master_blocks` of any recipe, as one matrix of bfloat16 bits.

    Args:
        codes: int8 (rows, columns).
        scales: of the recipe's groups, positive.
    Raises:
        UnsupportedError: the quantiser could not give codes and scales back.
    """
    rows, columns = codes.shape
    down, across = recipe.row_groups, recipe.column_groups
    split = codes.reshape(down, rows // down, across, columns // across)
    blocks = split.transpose(0, 2, 1, 3).reshape(recipe.scales, -1)
    bits = np.zeros(blocks.shape, np.uint16)
    for block, scale, out in zip(blocks, scales, bits, strict=True):
        if recipe.weights == "binary" and abs(int(block.sum(dtype=np.int64))) == block.size:
            raise UnsupportedError(
                f"{name}: all codes of a block are equal, and no masters give that: the quantiser splits "
                "them at their mean. Convert to 'packed'"
            )
        places = np.flatnonzero(block)
        if places.size:
            lower, upper, raised = _neighbours(scale, places.size, block.size, name)
            magnitudes = np.full(places.size, lower)
            magnitudes[:raised] = upper
            out[places] = magnitudes | np.where(block[places] < 0, _SIGN, np.uint16(0))
    whole = bits.reshape(down, across, rows // down, columns // across).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(whole).reshape(rows, columns)


def _neighbours(scale: np.float32, nonzero: int, count: int, name: str) -> tuple[np.uint16, np.uint16, int]:
    """bfloat16 bits below and above scale * count / nonzero, and how many of them take the upper ones."""
    wanted = float(scale) * count / nonzero
    if not scale >= MIN_SCALE or wanted > 1e38:
        raise UnsupportedError(
            f"{name}: its scale {scale} cannot come from masters, whose scales lie between {MIN_SCALE} and "
            "1e38; convert to 'packed'"
        )
    lower = np.array([wanted], np.float32).view(np.uint32)[0] >> np.uint32(16)
    low, high = (
        float(np.array([bits], np.uint32).astype(np.uint32).view(np.float32)[0])
        for bits in (lower << np.uint32(16), (lower + np.uint32(1)) << np.uint32(16))
    )
    raised = round((wanted - low) / (high - low) * nonzero)
    return np.uint16(lower), np.uint16(lower + 1), min(max(raised, 0), nonzero)
