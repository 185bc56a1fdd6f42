"""Rotary positions, half-split: [x1, x2] -> [x1 cos - x2 sin, x2 cos + x1 sin] (arXiv 2104.09864)."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(
    head_dim: int, theta: float, start: int, length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosine and sine for positions start .. start+length-1.

    Returns:
        Two float32 tensors (length, head_dim); the second half repeats the first.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    positions = torch.arange(start, start + length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, 1.0 / theta**exponents).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys (..., length, head_dim) by `rotary_angles`."""
    first, second = x.chunk(2, dim=-1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), dim=-1) * sin.to(x.dtype)
