"""The Hadamard transform of BitNet v2 (arXiv 2504.18415, eq. 3): it spreads outliers before quantising.

    H_1 = 1      H_2n = [[H_n, H_n], [H_n, -H_n]]      y = H_n x / √n

A width that is no power of two is cut into blocks of the largest power of two that divides it (6912 into 27
of 256): H is then block-diagonal, still symmetric and orthogonal, so it is its own inverse and the backward
pass applies it again.

Additions are float32 and go stage by stage, partners 1, 2, 4, … apart, with one multiplication by 1/√n at the
end. Every implementation keeps that order and so returns the same bits.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def block_size(width: int) -> int:
    """The largest power of two that divides `width`."""
    return width & -width


def hadamard(x: NDArray[np.floating]) -> NDArray[np.float32]:
    """Transform the last axis: float (..., width) -> float32 of the same shape."""
    values = np.array(x, dtype=np.float32)
    block = block_size(values.shape[-1])
    partner = 1
    while partner < block:
        pairs = values.reshape(*values.shape[:-1], -1, 2, partner)
        values = np.stack((pairs[..., 0, :] + pairs[..., 1, :], pairs[..., 0, :] - pairs[..., 1, :]), axis=-2)
        values = values.reshape(x.shape)
        partner *= 2
    return values * np.float32(1 / math.sqrt(block))
