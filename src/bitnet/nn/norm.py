"""Norms: RMSNorm (arXiv 1910.07467) between modules, and the norms inside projections.

rms     y = x / √(mean x² + eps) · w
layer   y = (x - mean x) / √(mean (x - mean x)² + eps) · w      (SubLN of arXiv 2310.11453)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bitnet.nn.quantizers import split_columns
from bitnet.quant_config import NormKind


class RMSNorm(nn.Module):
    """Normalise the last dimension, the mean in float32.

    The quotient is cast back to the input's type before the weight is applied, as transformers does it.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class InnerNorm(nn.Module):
    """The norm inside a projection, in float32 throughout: a quantiser follows; `bitnet.quantize.norms`.

    Args:
        groups: parts of the last dimension, each with statistics of its own.
    """

    def __init__(
        self,
        size: int,
        kind: NormKind,
        eps: float,
        groups: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, device=device, dtype=dtype))
        self.kind, self.eps, self.groups = kind, eps, groups

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> float32 (..., size)."""
        y: Tensor = _InnerNorm.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.kind, self.eps, self.groups
        )
        return y


class _InnerNorm(torch.autograd.Function):
    """n · w with n = x' / √(mean x'² + eps), x' = x or x - mean x; keeps n for the backward pass and no more.

    dx' = (g' - n · mean g'n) / √(mean x'² + eps) with g' = g · w; dx = dx' or dx' - mean dx'.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, kind: NormKind, eps: float, groups: int) -> Tensor:
        parts = split_columns(x.float(), groups)
        if kind == "layer":
            parts = parts - _mean(parts)
        factor = torch.rsqrt(_mean(parts.square()) + eps)
        normal = parts * factor
        ctx.save_for_backward(normal, factor, weight)
        ctx.kind, ctx.dtype = kind, x.dtype
        return normal.flatten(-2) * weight.float()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        normal, factor, weight = ctx.saved_tensors
        weight_gradient = gradient * normal.flatten(-2)
        weight_gradient = weight_gradient.reshape(-1, len(weight)).sum(0).to(weight.dtype)
        behind = split_columns(gradient * weight.float(), normal.shape[-2])
        x_gradient = behind - normal * (behind * normal).mean(dim=-1, keepdim=True)
        if ctx.kind == "layer":
            x_gradient -= behind.mean(dim=-1, keepdim=True)
        x_gradient = (x_gradient * factor).flatten(-2).to(ctx.dtype)
        return x_gradient, weight_gradient, None, None, None


def normalised(x: Tensor, norm: RMSNorm | None) -> Tensor:
    """`norm` of x, or x where the configuration has no norm."""
    return x if norm is None else norm(x)


def _mean(x: Tensor) -> Tensor:
    return x.double().mean(dim=-1, keepdim=True).float()
