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

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitnet.errors import InputError

_SMALLEST = 1e-5  # lower bound of both absolute maximum and mean, arXiv 2402.17764's code


def ternary_codes(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes in {-1, 0, +1} and their scale, both float32: absmean over the whole matrix.

    Args:
        weight: floating point, (out_features, in_features).
    Returns:
        codes, same shape, and the scalar scale; codes · scale approximates weight.
    """
    scale = weight.abs().mean(dtype=torch.float64).clamp(min=_SMALLEST).float()
    return (weight.float() * scale.reciprocal()).round_().clamp_(-1, 1), scale


def int8_codes(x: Tensor, bits: int = 8) -> tuple[Tensor, Tensor]:
    """Signed codes and the factor s that made them, both float32: absmax over the last dimension.

    Args:
        x: floating point, (..., features).
        bits: 8 for codes in -128..127, 4 for -8..7.
    Returns:
        codes (..., features) and s (..., 1); codes / s approximates x.
    """
    x = x.float()
    largest = 2 ** (bits - 1) - 1
    # the maximum of |x| without a copy of x
    absmax = torch.maximum(x.amax(dim=-1, keepdim=True), x.amin(dim=-1, keepdim=True).neg_())
    # a Python number over a tensor is its reciprocal times the number, which rounds twice
    scale = x.new_tensor(float(largest)) / absmax.clamp_(min=_SMALLEST)
    return (x * scale).round_().clamp_(-largest - 1, largest), scale


class _QuantisedLinear(torch.autograd.Function):
    """y_i = x̂ Ŵ_iᵀ for all layers that read one x; keeps x̂ and Ŵ_i, not x and W_i, for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dtype: torch.dtype, strength: Tensor | None, bits: int, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        # in place, because fresh memory of this size costs several times the arithmetic on it
        quantised_weights = []
        for weight in weights:
            codes, scale = ternary_codes(weight)
            quantised_weights.append(_part_way(weight, codes.mul_(scale), strength).to(dtype))
        if bits < 16:
            codes, scale = int8_codes(x, bits)
            quantised_x = _part_way(x, codes.div_(scale), strength).to(dtype)
        else:
            quantised_x = x.to(dtype)
        ctx.save_for_backward(quantised_x, *quantised_weights)
        ctx.x_dtype = x.dtype
        ctx.weight_dtypes = [weight.dtype for weight in weights]
        return tuple(F.linear(quantised_x, weight) for weight in quantised_weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        quantised_x, *quantised_weights = ctx.saved_tensors
        x_rows = quantised_x.reshape(-1, quantised_x.shape[-1])
        x_gradient = None
        weight_gradients: list[Tensor | None] = []
        for index, (gradient, weight) in enumerate(zip(gradients, quantised_weights, strict=True)):
            rows = gradient.reshape(-1, gradient.shape[-1]).to(x_rows.dtype)
            if ctx.needs_input_grad[0]:
                x_gradient = rows @ weight if x_gradient is None else x_gradient.addmm_(rows, weight)
            wanted = ctx.needs_input_grad[4 + index]
            weight_gradients.append((rows.T @ x_rows).to(ctx.weight_dtypes[index]) if wanted else None)
        if x_gradient is not None:
            x_gradient = x_gradient.reshape(quantised_x.shape).to(ctx.x_dtype)
        return x_gradient, None, None, None, *weight_gradients


def _part_way(value: Tensor, quantised: Tensor, strength: Tensor | None) -> Tensor:
    """value + λ(quantised - value), written over `quantised`, which is float32; λ = 1 changes nothing."""
    return quantised if strength is None else quantised.sub_(value).mul_(strength).add_(value)


class BitLinear(nn.Linear):
    """Drop-in for `nn.Linear` with ternary weight and int8 input; `weight` holds the trainable masters.

    Same constructor, same parameters, same shapes. The bias stays in full precision. Under autocast the
    matrix products run in autocast's type, the quantisers in float32.

    Attributes, written by `set_quantization`:
        quantised: False is λ = 0, plain `nn.Linear`.
        strength: λ between 0 and 1, float32 scalar, or None for λ = 1. A tensor, because a compiled graph
            reads its value anew, where a number would be compiled into it.
        activation_bits: 8 or 4, or 16 for an input that is not quantised.
    """

    quantised: bool = True
    strength: Tensor | None = None
    activation_bits: int = 8

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return _multiply(x, (self,))[0] if self.quantised else super().forward(x)


def apply_together(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """What each layer makes of the same x, as if called one by one; alike BitLinears quantise x only once."""
    alike = [layer for layer in layers if _is_like(layer, layers[0])]
    return _multiply(x, alike) if len(alike) == len(layers) else [layer(x) for layer in layers]


def _is_like(layer: nn.Module, first: nn.Module) -> TypeGuard[BitLinear]:
    """Whether both are plain quantised BitLinears with the same settings, so that calling them is no more.

    A subclass may compute something else, and hooks would not run.
    """
    if type(layer) is not BitLinear or type(first) is not BitLinear:
        return False
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return False
    same = layer.strength is first.strength and layer.activation_bits == first.activation_bits
    return same and layer.quantised and first.quantised


def _multiply(x: Tensor, layers: Sequence[BitLinear]) -> list[Tensor]:
    """The quantised products of layers with the same settings, biases added."""
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    outputs = _QuantisedLinear.apply(  # type: ignore[no-untyped-call]
        x, dtype, layers[0].strength, layers[0].activation_bits, *(layer.weight for layer in layers)
    )
    return [
        y if layer.bias is None else y + layer.bias.to(y.dtype)
        for layer, y in zip(layers, outputs, strict=True)
    ]


def set_quantization(model: nn.Module, strength: float, activation_bits: int) -> None:
    """Set λ and the bits of activations of every BitLinear in `model`; cheap enough for every step.

    A compiled model is compiled anew when λ leaves or reaches 0 or 1, not when it moves between them. Packed
    layers are left alone.

    Args:
        strength: λ, 0..1.
        activation_bits: 4, 8, or 16 for inputs that are not quantised. Of no effect where λ is 0.
    Raises:
        InputError: another value.
    """
    if not 0 <= strength <= 1:
        raise InputError(f"the quantiser's strength is {strength}; it must lie in 0..1")
    if activation_bits not in (4, 8, 16):
        raise InputError(f"activation_bits is {activation_bits}; known are 4, 8 and 16 (not quantised)")
    layers = [module for module in model.modules() if isinstance(module, BitLinear)]
    shared: Tensor | None = None
    if layers and 0 < strength < 1:
        # one tensor for all: by it layers know that they are set alike
        shared = torch.tensor(strength, dtype=torch.float32, device=layers[0].weight.device)
    for layer in layers:
        layer.quantised, layer.strength, layer.activation_bits = strength > 0, shared, activation_bits


def bit_linear_by_detach(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, strength: float = 1.0, activation_bits: int = 8
) -> Tensor:
    """The textbook form, float32 only: x + λ(x̂ - x).detach(). The tests compare `BitLinear` with it."""
    codes, scale = ternary_codes(weight)
    weight = weight + strength * (codes * scale - weight).detach()
    if activation_bits < 16:
        codes, scale = int8_codes(x, activation_bits)
        x = x + strength * (codes / scale - x).detach()
    return F.linear(x, weight, bias)


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
