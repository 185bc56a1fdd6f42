"""BitLinear: a linear layer whose weight and input are quantised in the forward pass, trained straight
through.

    x' = rotate(norm(x)) where the recipe has them    x̂ = codes / s    of x', a token (bitnet.nn.quantizers)
    Ŵ  = codes · σ    of W, a block                   y = x̂ Ŵᵀ + b

For b1.58 (AutoBitLinear of 2B4T, arXiv 2504.12285; quantisers of arXiv 2402.17764):

    s  = 127 / max(max|x|, 1e-5)  a token      x̂ = clip(round(x·s), -128, 127) / s
    σ  = max(mean|W|, 1e-5)       a matrix     Ŵ = clip(round(W/σ), -1, 1) · σ

Backward, straight through all quantisers: dx' = g·Ŵ, dW = gᵀ·x̂; inputs that a mask dropped get theirs, too.

A quantiser can be let in slowly, for weights that were not quantised before (Hugging Face's fine-tuning to
1.58 bits): w + λ(Ŵ - w) and x' + λ(x̂ - x') take the places of Ŵ and x̂. λ = 1 is the layer above to the bit,
λ = 0 is `nn.Linear` of x'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitnet.errors import InputError
from bitnet.nn.norm import InnerNorm
from bitnet.nn.quantizers import input_codes, scale_codes, split_columns, weight_codes
from bitnet.nn.rotation import hadamard
from bitnet.quant_config import InputKind, LinearRecipe

_PLAIN = LinearRecipe()


class _QuantisedLinear(torch.autograd.Function):
    """y_i = x̂ Ŵ_iᵀ for all layers that read one x; keeps x̂ and Ŵ_i, not x and W_i, for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dtype: torch.dtype,
        strength: Tensor | None,
        inputs: InputKind | None,
        recipes: tuple[LinearRecipe, ...],
        *weights: Tensor,
    ) -> tuple[Tensor, ...]:
        # in place, because fresh memory of this size costs several times the arithmetic on it
        quantised_weights = []
        for weight, recipe in zip(weights, recipes, strict=True):
            quantised = scale_codes(*weight_codes(weight, recipe), recipe)
            quantised_weights.append(_part_way(weight, quantised, strength).to(dtype))
        if inputs is None:
            quantised_x = x.to(dtype)
        else:
            quantised_x = _part_way(x, _quantised_input(x, inputs, recipes[0]), strength).to(dtype)
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
            wanted = ctx.needs_input_grad[5 + index]
            weight_gradients.append((rows.T @ x_rows).to(ctx.weight_dtypes[index]) if wanted else None)
        if x_gradient is not None:
            x_gradient = x_gradient.reshape(quantised_x.shape).to(ctx.x_dtype)
        return x_gradient, None, None, None, None, *weight_gradients


def _quantised_input(x: Tensor, kind: InputKind, recipe: LinearRecipe) -> Tensor:
    """x̂ in float32, every column group with a factor of its own."""
    if recipe.column_groups == 1:
        codes, scale = input_codes(x, kind)
        return codes.div_(scale)
    codes, scale = input_codes(split_columns(x, recipe.column_groups), kind)
    return codes.div_(scale).flatten(-2)


def _part_way(value: Tensor, quantised: Tensor, strength: Tensor | None) -> Tensor:
    """value + λ(quantised - value), written over `quantised`, which is float32; λ = 1 changes nothing."""
    return quantised if strength is None else quantised.sub_(value).mul_(strength).add_(value)


class BitLinear(nn.Linear):
    """Drop-in for `nn.Linear` whose `weight` holds the trainable masters of quantised weights.

    Same constructor, same parameters, same shapes; b1.58's quantisers unless `recipe` says otherwise. A norm
    inside is the submodule `rms_norm` or `layer_norm`. The bias stays in full precision. Under autocast the
    matrix products run in autocast's type, norms and quantisers in float32.

    Attributes:
        recipe: which quantisers.
    What is in force, written by `set_quantization`:
        quantised: False is λ = 0.
        strength: λ between 0 and 1, float32 scalar, or None for λ = 1. A tensor, because a compiled graph
            reads its value anew, where a number would be compiled into it.
        inputs: the recipe's, or int8, or None for an input that is not quantised.
    """

    recipe: LinearRecipe = _PLAIN
    quantised: bool = True
    strength: Tensor | None = None
    inputs: InputKind | None = _PLAIN.inputs

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        recipe: LinearRecipe = _PLAIN,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.follow(recipe)

    def follow(self, recipe: LinearRecipe) -> None:
        """Take a recipe, once; its norm begins with weights of 1.

        Raises:
            InputError: the matrix cannot be split into the recipe's groups.
        """
        check_groups(self.in_features, self.out_features, recipe)
        self.recipe, self.inputs = recipe, recipe.inputs
        add_norm(self, self.in_features, recipe, self.weight.device, self.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if self.quantised:
            return _multiply(x, (self,))[0]
        return F.linear(prepare_input(self, x, self.recipe).to(x.dtype), self.weight, self.bias)


def check_groups(in_features: int, out_features: int, recipe: LinearRecipe) -> None:
    """Raises InputError: a matrix cannot be split as a recipe says."""
    if out_features % recipe.row_groups or in_features % recipe.column_groups:
        raise InputError(
            f"a layer of {in_features} inputs and {out_features} outputs cannot be split into "
            f"{recipe.row_groups} groups of rows and {recipe.column_groups} of columns; choose divisors"
        )


def add_norm(
    layer: nn.Module,
    in_features: int,
    recipe: LinearRecipe,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Give a layer the norm of its recipe, by its name on disk."""
    if recipe.norm is not None:
        norm = InnerNorm(in_features, recipe.norm, recipe.norm_eps, recipe.column_groups, device, dtype)
        layer.add_module(f"{recipe.norm}_norm", norm.train(layer.training))


def prepare_input(layer: nn.Module, x: Tensor, recipe: LinearRecipe) -> Tensor:
    """What a layer's quantiser sees of x: norm and rotation, in float32 where there are any."""
    if recipe.norm is not None:
        x = getattr(layer, f"{recipe.norm}_norm")(x)
    return hadamard(x) if recipe.rotate else x


def apply_together(x: Tensor, *layers: nn.Module) -> list[Tensor]:
    """What each layer makes of the same x, as if called one by one; alike BitLinears quantise x only once."""
    alike = [layer for layer in layers if _is_like(layer, layers[0])]
    return _multiply(x, alike) if len(alike) == len(layers) else [layer(x) for layer in layers]


def _is_like(layer: nn.Module, first: nn.Module) -> TypeGuard[BitLinear]:
    """Whether both are quantised BitLinears that make the same x̂ of an x, so that calling them is no more.

    A subclass may compute something else, hooks would not run, and each norm inside has its own weights.
    """
    if type(layer) is not BitLinear or type(first) is not BitLinear:
        return False
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return False
    one, other = layer.recipe, first.recipe
    if one.norm is not None or other.norm is not None:
        return False
    if (one.rotate, one.column_groups) != (other.rotate, other.column_groups):
        return False
    same = layer.strength is first.strength and layer.inputs == first.inputs
    return same and layer.quantised and first.quantised


def _multiply(x: Tensor, layers: Sequence[BitLinear]) -> list[Tensor]:
    """The quantised products of layers that are alike, biases added."""
    device, first = x.device.type, layers[0]
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
    outputs = _QuantisedLinear.apply(  # type: ignore[no-untyped-call]
        prepare_input(first, x, first.recipe),
        dtype,
        first.strength,
        first.inputs,
        tuple(layer.recipe for layer in layers),
        *(layer.weight for layer in layers),
    )
    return [
        y if layer.bias is None else y + layer.bias.to(y.dtype)
        for layer, y in zip(layers, outputs, strict=True)
    ]


def set_quantization(
    model: nn.Module, strength: float, activation_bits: int = 8, low_bit: bool = True
) -> None:
    """Set what every BitLinear in `model` quantises how much; cheap enough for every step.

    A compiled model is compiled anew when λ leaves or reaches 0 or 1, not when it moves between them, and
    when the inputs' quantisers change. Packed layers are left alone.

    Args:
        strength: λ, 0..1, of weights and inputs.
        activation_bits: 16: no input is quantised. Of no effect where λ is 0.
        low_bit: inputs are quantised as each layer's recipe says; False: all of them to int8, the first of
            the two stages of arXiv 2411.04965 and 2504.18415.
    Raises:
        InputError: another value.
    """
    if not 0 <= strength <= 1:
        raise InputError(f"the quantiser's strength is {strength}; it must lie in 0..1")
    if activation_bits not in (8, 16):
        raise InputError(
            f"activation_bits is {activation_bits}; known are 8 and 16 (not quantised); fewer are for the "
            "layer's recipe to say"
        )
    layers = [module for module in model.modules() if isinstance(module, BitLinear)]
    shared: Tensor | None = None
    if layers and 0 < strength < 1:
        # one tensor for all: by it layers know that they are set alike
        shared = torch.tensor(strength, dtype=torch.float32, device=layers[0].weight.device)
    for layer in layers:
        layer.quantised, layer.strength = strength > 0, shared
        layer.inputs = None if activation_bits == 16 else layer.recipe.inputs if low_bit else "int8"
