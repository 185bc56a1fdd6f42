"""Norms: RMSNorm (arXiv 1910.07467) between modules, and the norms inside projections.

rms     y = x / √(mean x² + eps) · w
layer   y = (x - mean x) / √(mean (x - mean x)² + eps) · w      (SubLN of arXiv 2310.11453)
"""

from __future__ import annotations

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
        parts = split_columns(x.float(), self.groups)
        if self.kind == "layer":
            parts = parts - _mean(parts)
        parts = parts * torch.rsqrt(_mean(parts.square()) + self.eps)
        y: Tensor = parts.flatten(-2) * self.weight.float()
        return y


def normalised(x: Tensor, norm: RMSNorm | None) -> Tensor:
    """`norm` of x, or x where the configuration has no norm."""
    return x if norm is None else norm(x)


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=-1, keepdim=True, dtype=torch.float64).float()
