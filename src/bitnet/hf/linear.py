"""The modules that the plug-in puts into a transformers model: packed linear layers, and the head.

    y = (codes · x̂) · scale / s + b,   s = 127 / max(max|x|, 1e-5) a token,   x̂ = clip(round(x·s), -128, 127)

The sum is one of integers, exact on every CPU. x is quantised in float32 whatever its type, and y is rounded
to that type once. All products share one pool of threads.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitnet import _core
from bitnet.cpu_model import thread_count
from bitnet.errors import FormatError, UnsupportedError
from bitnet.quantize.packing import find_invalid, unpack_2bit

# Up to here the head waits for memory, and reading bfloat16 in place wins; beyond, PyTorch's blocked product.
_FEW_TOKENS = 8


@cache
def layer_pool() -> _core.LayerPool:
    """The threads of all products, made at the first: BITNET_THREADS, else as many as PyTorch uses then."""
    threads = thread_count() if os.environ.get("BITNET_THREADS") else torch.get_num_threads()
    return _core.LayerPool(threads, "")


# nanobind reports objects that outlive the interpreter, and this one would
atexit.register(layer_pool.cache_clear)


class KernelLinear(nn.Module):
    """A packed linear layer. Names and shapes are those of the checkpoint, so it loads and saves as one.

    Attributes:
        weight: uint8 (out_features / 4, in_features), the layout of `bitnet.quantize.packing`. It stays as
            transformers loaded it (mapped from the file); products read a copy in the kernels' own layout,
            made by `prepare` or at the first product, and anew when `weight` or the scale was changed.
        weight_scale: one floating-point number.
        scale_divides: the convention of `linear_class: bitlinear`, where weight_scale is 1 / mean|W|.
        bias: (out_features,) or None.
        rms_norm: a norm of the input (`use_rms_norm`), or None.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        scale_divides: bool = False,
        rms_norm: nn.Module | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        """
        Raises:
            UnsupportedError: out_features is no multiple of 4, so it cannot be packed.
        """
        super().__init__()
        if out_features % 4:
            raise UnsupportedError(
                f"a layer with {out_features} outputs; packed weights need a multiple of 4"
            )
        self.in_features, self.out_features = in_features, out_features
        self.scale_divides = scale_divides
        self.rms_norm = rms_norm
        # 0x55: four codes 1, the value 0
        packed = torch.full((out_features // 4, in_features), 0x55, dtype=torch.uint8, device=device)
        self.register_buffer("weight", packed)
        # float32 whatever the model's type: a rounded scale would be another model
        self.register_buffer("weight_scale", torch.ones(1, dtype=torch.float32, device=device))
        self.register_buffer("bias", torch.zeros(out_features, dtype=dtype, device=device) if bias else None)
        self._kernel: _core.TernaryLinear | None = None
        self._prepared_for: tuple[int, ...] = ()
        self._shared: _SharedInput | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in x's type.

        Gradients reach x straight through its rounding: dX = g · codes · scale.

        Raises:
            UnsupportedError: x is not on the CPU.
        """
        if self.rms_norm is not None:
            x = self.rms_norm(x)
        if torch.is_grad_enabled() and x.requires_grad:
            y: Tensor = _StraightThrough.apply(x, self)  # type: ignore[no-untyped-call]
        else:
            y = self.product(x)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def product(self, x: Tensor) -> Tensor:
        """`forward` without norm, bias and gradients."""
        if self._shared is None:
            return multiply_together(x, [self])[0]
        return self._shared.product(x, self)

    def multiplier(self) -> float:
        """The factor of y = (codes x) · factor, whichever convention weight_scale follows."""
        # in float32, as the definition divides; a Python float is a float64
        scale = self.weight_scale.detach().float().reshape(-1)[0]
        return float(scale.reciprocal() if self.scale_divides else scale)

    def prepare(self, name: str) -> None:
        """Check what was loaded and copy it into the kernels' layout.

        Args:
            name: what to call the layer in messages.
        Raises:
            FormatError: an impossible code or scale.
        """
        invalid = find_invalid(self.weight.numpy())
        if invalid is not None:
            raise FormatError(
                f"{name}.weight holds the invalid code 3 in byte {list(invalid)}; the file is damaged"
            )
        multiplier = self.multiplier()
        if not 0 < multiplier < float("inf"):
            raise FormatError(
                f"{name}.weight_scale is {self.weight_scale.tolist()}; a scale is a positive finite number"
            )
        self.current_kernel()

    def extra_repr(self) -> str:
        """Shown between the brackets when the module is printed."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        )

    def current_kernel(self) -> _core.TernaryLinear:
        """The kernels' copy of the weights as they are now."""
        # straight from the dictionary: as attributes they take half a millisecond a token of 30 layers
        buffers: dict[str, Any] = self._buffers
        weight, scale = buffers["weight"], buffers["weight_scale"]
        state = (weight.data_ptr(), version_of(weight), scale.data_ptr(), version_of(scale))
        if self._kernel is None or state != self._prepared_for:
            packed = weight.contiguous().numpy()
            self._kernel = _core.TernaryLinear(packed, self.multiplier(), layer_pool())
            self._prepared_for = state
        return self._kernel

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: the kernels' copy is made anew."""
        return {**self.__dict__, "_kernel": None}


def version_of(tensor: Tensor) -> int:
    """Changes when the values do; tensors of torch.inference_mode() do not count and pass for constant."""
    return -1 if tensor.is_inference() else tensor._version


def multiply_together(x: Tensor, layers: Sequence[KernelLinear]) -> list[Tensor]:
    """What `product` of each layer makes of one x, which is quantised once.

    Raises:
        UnsupportedError: x is not on the CPU.
    """
    if x.device.type != "cpu":
        raise UnsupportedError(
            f"bitnet.hf runs on the CPU and this input is on {x.device}; load the model after "
            "bitnet.hf.disable(), or with a device_map that names that device"
        )
    rows = x.detach().reshape(x[..., 0].numel(), x.shape[-1]).float().contiguous()
    outputs = [torch.empty(rows.shape[0], layer.out_features) for layer in layers]
    _core.multiply_together(
        layers=[layer.current_kernel() for layer in layers],
        x=rows.numpy(),
        outputs=[y.numpy() for y in outputs],
    )
    return [y.to(x.dtype).reshape(*x.shape[:-1], y.shape[-1]) for y in outputs]


def share_input(layers: Sequence[object]) -> None:
    """Let layers that are called with one input after the other be multiplied together.

    Nothing changes but the time it takes. Anything else than KernelLinears of one width, without norms of
    their own, is left alone.
    """
    alike = [layer for layer in layers if isinstance(layer, KernelLinear) and layer.rms_norm is None]
    if len(alike) == len(layers) and len({layer.in_features for layer in alike}) == 1:
        shared = _SharedInput(alike)
        for layer in alike:
            layer._shared = shared


class _SharedInput:
    """Layers that read one x: the first to be asked computes for all, the others find their result.

    A result is given out once, and only for the very tensor it was made of, unmodified.
    """

    def __init__(self, layers: Sequence[KernelLinear]) -> None:
        self._layers = layers
        self._held: tuple[Tensor, int, dict[KernelLinear, Tensor]] | None = None

    def product(self, x: Tensor, layer: KernelLinear) -> Tensor:
        if x.is_inference():  # such tensors do not tell whether they were modified
            return multiply_together(x, [layer])[0]
        held = self._held  # one read: another thread may replace it
        if held is not None and held[0] is x and held[1] == x._version:
            result = held[2].pop(layer, None)
            if not held[2]:
                self._held = None
            if result is not None:
                return result
        results = dict(zip(self._layers, multiply_together(x, self._layers), strict=True))
        result = results.pop(layer)
        self._held = (x, x._version, results)
        return result

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": None}


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: KernelLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        layer: KernelLinear = ctx.layer
        codes = torch.from_numpy(unpack_2bit(layer.weight.contiguous().numpy())).to(gradient.dtype)
        return (gradient @ codes) * layer.multiplier(), None


class KernelHead(nn.Linear):
    """The full-precision head: `nn.Linear`, whose product for a few tokens reads the weights faster."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features), in x's type; sums are float32."""
        if not self._fits(x):
            return F.linear(x, self.weight, self.bias)
        rows = x.reshape(-1, self.in_features).float().contiguous()
        weight = self.weight.detach()
        bits = weight.view(torch.uint16) if weight.dtype == torch.bfloat16 else weight
        y = torch.empty(rows.shape[0], self.out_features)
        _core.head_product(layer_pool(), x=rows.numpy(), weight=bits.numpy(), y=y.numpy())
        return y.to(x.dtype).reshape(*x.shape[:-1], self.out_features)

    def _fits(self, x: Tensor) -> bool:
        weight = self.weight
        if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            return False
        known = weight.dtype in (torch.bfloat16, torch.float32) and x.dtype == weight.dtype
        on_cpu = weight.device.type == x.device.type == "cpu"
        few = 0 < x.numel() <= _FEW_TOKENS * self.in_features
        return known and on_cpu and few and self.bias is None and weight.is_contiguous()
