"""The Hadamard transform of BitNet v2 in PyTorch (arXiv 2504.18415); `bitnet.quantize.rotation` defines it.

H is symmetric, so the backward pass applies the same transform to the gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bitnet.quantize.rotation import block_size

_PIECE = 1 << 17  # numbers transformed at once: all stages stay in the L2 cache


def hadamard(x: Tensor) -> Tensor:
    """Transform the last axis: floating point (..., width) -> float32, the bits of the NumPy definition."""
    y: Tensor = _Hadamard.apply(x)  # type: ignore[no-untyped-call]
    return y


class _Hadamard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.dtype = x.dtype
        return _transform(x.float())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _transform(gradient.float()).to(ctx.dtype)


def _transform(x: Tensor) -> Tensor:
    width = x.shape[-1]
    vectors = x.reshape(x.numel() // width, width)
    # a compiler finds its own pieces, and each here would lengthen its graph
    piece = len(vectors) if torch.compiler.is_compiling() else _PIECE // width
    return torch.cat([_stages(part) for part in torch.split(vectors, max(1, piece))]).reshape(x.shape)


def _stages(vectors: Tensor) -> Tensor:
    """(vectors, width), transformed."""
    count, width = vectors.shape
    block = block_size(width)
    # features first: partners are then whole rows, which add faster than neighbours
    values = vectors.t().contiguous()
    partner = 1
    while partner < block:
        first, second = values.view(width // (2 * partner), 2, partner, count).unbind(1)
        values = torch.stack((first + second, first - second), dim=1).view(width, count)
        partner *= 2
    return values.t() * (1 / math.sqrt(block))
