"""The Hadamard transform of BitNet v2 in PyTorch (arXiv 2504.18415); `bitnet.quantize.rotation` defines it.

H is symmetric, so the backward pass applies the same transform to the gradient.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from bitnet.quantize.rotation import block_size


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
    block, vectors = block_size(width), x.numel() // width
    # features first: partners are then whole rows, which add at the speed of memory
    values = x.reshape(vectors, width).t().contiguous()
    partner = 1
    while partner < block:
        first, second = values.view(width // (2 * partner), 2, partner, vectors).unbind(1)
        values = torch.stack((first + second, first - second), dim=1).view(width, vectors)
        partner *= 2
    return values.t().mul(1 / math.sqrt(block)).reshape(x.shape)
