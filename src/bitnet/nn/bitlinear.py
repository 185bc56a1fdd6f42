"""BitLinear: a linear layer whose weight is ternary and whose input is int8, trained straight through.

Forward, as AutoBitLinear of 2B4T (arXiv 2504.12285; quantisers of arXiv 2402.17764):

    s  = 127 / max(max|x|, 1e-5)  a token      x̂ = clip(round(x·s), -128, 127) / s
    σ  = max(mean|W|, 1e-5)       a matrix     Ŵ = clip(round(W/σ), -1, 1) · σ
    y  = x̂ Ŵᵀ + b

Backward, straight through both roundings: dX = g·Ŵ, dW = gᵀ·x̂.

Scales and codes are computed in float32 whatever the compute type: in bfloat16 the detach trick leaves
seven distinct weight values instead of three. Rounding is half-to-even, and the mean is summed in float64;
`bitnet.quantize` is the definition, the tests hold these lines to it with `==`.

A quantiser can be let in slowly, for weights that were not ternary before (Hugging Face's fine-tuning to 1.58
bits): w + λ(Ŵ - w) and x + λ(x̂ - x) take the places of Ŵ and x̂. λ = 1 is the layer above to the bit,
λ = 0 is `nn.Linear`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_SMALLEST = 1e-5  # lower bound of both absolute maximum and mean, arXiv 2402.17764's code


def ternary_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in {-1, 0, +1} and their scale, both float32: absmean over the whole matrix.

    Args:
        weight: floating point, (out_features, in_features).
    Returns:
        codes, same shape, and the scalar scale; codes · scale approximates weight.
    """
    scale = weight.abs().mean(dtype=torch.float64).clamp(min=_SMALLEST).float()
    return (weight.float() * scale.reciprocal()).round().clamp(-1, 1), scale


def int8_codes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in -128..127 and the factor s that made them, both float32: absmax over the last dimension.

    Args:
        x: floating point, (..., features).
    Returns:
        codes (..., features) and s (..., 1); codes / s approximates x.
    """
    x = x.float()
    # a Python number over a tensor is its reciprocal times the number, which rounds twice
    scale = x.new_tensor(127.0) / x.abs().amax(dim=-1, keepdim=True).clamp(min=_SMALLEST)
    return (x * scale).round().clamp(-128, 127), scale


class _QuantisedLinear(torch.autograd.Function):
    """y = x̂ Ŵᵀ with straight-through gradients; keeps x̂ and Ŵ, not x and W, for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, dtype: torch.dtype, strength: float, quantise_x: bool
    ) -> Tensor:
        codes, scale = ternary_codes(weight)
        quantised_weight = _part_way(weight, codes * scale, strength).to(dtype)
        if quantise_x:
            codes, scale = int8_codes(x)
            quantised_x = _part_way(x, codes / scale, strength).to(dtype)
        else:
            quantised_x = x.to(dtype)
        ctx.save_for_backward(quantised_x, quantised_weight)
        ctx.dtypes = x.dtype, weight.dtype
        return F.linear(quantised_x, quantised_weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        quantised_x, quantised_weight = ctx.saved_tensors
        x_dtype, weight_dtype = ctx.dtypes
        gradient = gradients[0].to(quantised_x.dtype)
        x_gradient = weight_gradient = None
        if ctx.needs_input_grad[0]:
            x_gradient = (gradient @ quantised_weight).to(x_dtype)
        if ctx.needs_input_grad[1]:
            rows = gradient.reshape(-1, gradient.shape[-1])
            weight_gradient = (rows.T @ quantised_x.reshape(rows.shape[0], -1)).to(weight_dtype)
        return x_gradient, weight_gradient, None, None, None


def _part_way(value: Tensor, quantised: Tensor, strength: float) -> Tensor:
    """value + λ(quantised - value) in float32; exactly `quantised` for λ = 1."""
    if strength == 1:
        return quantised
    value = value.float()
    return value + strength * (quantised - value)


class BitLinear(nn.Linear):
    """Drop-in for `nn.Linear` with ternary weight and int8 input; `weight` holds the trainable masters.

    Same constructor, same parameters, same shapes. The bias stays in full precision. Under autocast the
    matrix products run in autocast's type, the quantisers in float32.

    Attributes:
        strength: λ, 0..1; see the top of this file.
        activation_bits: 8, or 16 for an input that is not quantised.
    """

    strength: float = 1.0
    activation_bits: int = 8

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if self.strength == 0:
            return F.linear(x, self.weight, self.bias)
        device = x.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else x.dtype
        y: Tensor = _QuantisedLinear.apply(  # type: ignore[no-untyped-call]
            x, self.weight, dtype, self.strength, self.activation_bits == 8
        )
        return y if self.bias is None else y + self.bias.to(y.dtype)


def set_quantization(model: nn.Module, strength: float, activation_bits: int) -> None:
    """Set λ and the activations' bits of every BitLinear; a compiled model is compiled anew by a change."""
    for module in model.modules():
        if isinstance(module, BitLinear):
            module.strength, module.activation_bits = strength, activation_bits


def bit_linear_by_detach(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The textbook form, float32 only: x + (x̂ - x).detach(). The tests compare `BitLinear` with it."""
    codes, scale = ternary_codes(weight)
    weight = weight + (codes * scale - weight).detach()
    codes, scale = int8_codes(x)
    return F.linear(x + (codes / scale - x).detach(), weight, bias)


class FrozenBitLinear(nn.Module):
    """BitLinear of a packed checkpoint: integer codes and one scale, y = x̂ codesᵀ · scale + b.

    Attributes:
        codes: int8, (out_features, in_features), values -1, 0, +1.
        scale: float32 scalar, in the multiplying convention.
        bias: float32, (out_features,), or None.
    """

    codes: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(out_features, in_features, dtype=torch.int8))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("bias", torch.zeros(out_features) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in x's type."""
        codes, scale = int8_codes(x)
        y = F.linear((codes / scale).to(x.dtype), self.codes.to(x.dtype)) * self.scale.to(x.dtype)
        return y if self.bias is None else y + self.bias.to(x.dtype)
