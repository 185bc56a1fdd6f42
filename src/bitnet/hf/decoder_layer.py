"""transformers' BitNet decoder layer, computed in two native calls when it decodes.

    project   norm, int8, q k v, rotary embedding             -> the caller's cache
    finish    attention, norm, o, norm, gate and up, activation, norm, down

Small PyTorch operations between the products would take longer than the products. Only what is certain to
mean the same is taken: one new token a sequence, nothing masked, no gradients, modules that nobody replaced
or hooked. Everything else runs module by module, as transformers wrote it.

This module imports transformers' BitNet model, so import it once one is loaded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from transformers.activations import ACT2FN
from transformers.models.bitnet.modeling_bitnet import (
    BitNetAttention,
    BitNetDecoderLayer,
    BitNetMLP,
    BitNetRMSNorm,
)

from bitnet import _core
from bitnet.hf.cache_room import find_room
from bitnet.hf.linear import KernelLinear, version_of

_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
_ACTIVATIONS = ("relu2", "silu")
_FLOATS = (torch.bfloat16, torch.float32)
# Up to here the products wait for memory; larger batches gain nothing.
_MOST_SEQUENCES = 8
# What a model hands its layers, in any 5.x; another argument may mean something to a module inside.
_KNOWN = {"attention_mask", "position_ids", "position_embeddings", "cache_position", "use_cache"}
_CACHES = {"cache", "past_key_values"}


class KernelDecoderLayer(BitNetDecoderLayer):  # type: ignore[misc]  # transformers is not followed
    """A layer that computes what `BitNetDecoderLayer` does; `adopt` makes it of one."""

    _native: _core.DecoderLayer | None = None
    _made_for: tuple[object, ...] = ()
    _checked: list[Any] | None = None

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """(sequences, tokens, hidden_size), the same shape out."""
        if not args and _may_be_native(hidden_states, kwargs):
            parts = self._parts()
            if self._are_plain(parts):
                output = self._decode(hidden_states, kwargs, parts)
                if output is not None:
                    return output
        result: Tensor = super().forward(hidden_states, *args, **kwargs)
        return result

    def _decode(self, hidden_states: Tensor, kwargs: dict[str, Any], parts: list[Any]) -> Tensor | None:
        """The layer's output, its keys and values being in the cache; None for a cache we cannot extend."""
        native = self._current(parts)
        attention = parts[_ATTENTION]
        count, width = len(hidden_states), attention.head_dim
        heads = parts[_KEY].out_features // width
        room = None
        cache = next((kwargs[name] for name in _CACHES if kwargs.get(name) is not None), None)
        if cache is not None:
            room = find_room(cache, attention.layer_idx, (count, heads, width), hidden_states)
            if room is None:
                return None
            keys, values, position = _array(room.keys), _array(room.values), room.length
        else:
            keys, values = (_array(hidden_states.new_empty(count, heads, 1, width)) for _ in "kv")
            position = 0
        x = _array(hidden_states.view(count, -1))
        cos, sin = (_array(angles.view(-1, width)) for angles in kwargs["position_embeddings"])
        query = np.empty((count, parts[_QUERY].out_features), np.float32)
        native.project(x, cos, sin, query, keys, values, position)
        output = torch.empty_like(hidden_states)
        native.finish(x, query, keys, values, position + 1, _array(output.view(count, -1)))
        if room is not None:
            room.take()
        return output

    def _parts(self) -> list[Any]:
        """The modules inside, in the order that `_are_plain` and `_current` know."""
        # straight from the dictionaries: nn.Module's attributes take a millisecond a token of 30 layers
        inside = self._modules
        attention, mlp = inside["self_attn"], inside["mlp"]
        in_attention, in_mlp = attention._modules, mlp._modules
        norms = [inside["input_layernorm"], in_attention.get("attn_sub_norm")]
        norms += [inside["post_attention_layernorm"], in_mlp.get("ffn_sub_norm")]
        linears = [in_attention.get(name) for name in _PROJECTIONS]
        linears += [in_mlp.get(name) for name in _FEED_FORWARD]
        return [*norms, *linears, attention, mlp, in_mlp.get("act_fn")]

    def _are_plain(self, parts: list[Any]) -> bool:
        """Whether calling these modules means what their classes say, and nothing else."""
        if self._checked != parts:  # compares identities
            if not _have_known_classes(parts):
                return False
            self._checked = parts
        attention = parts[_ATTENTION]
        if attention.config._attn_implementation != "sdpa":
            return False
        return not (attention.training and attention.attention_dropout) and all(map(_is_untouched, parts))

    def _current(self, parts: list[Any]) -> _core.DecoderLayer:
        """The native layer for the weights as they are now."""
        kernels = [layer.current_kernel() for layer in parts[_LINEARS]]
        weights = [norm._parameters["weight"] for norm in parts[_NORMS]]
        state = (*kernels, *[(weight.data_ptr(), version_of(weight)) for weight in weights])
        if self._native is None or state != self._made_for:
            attention, mlp = parts[_ATTENTION], parts[_MLP]
            self._native = _core.DecoderLayer(
                linears=kernels,
                norms=[weight.detach().float().contiguous().numpy() for weight in weights],
                eps=[float(norm.variance_epsilon) for norm in parts[_NORMS]],
                kv_heads=parts[_KEY].out_features // attention.head_dim,
                head_dim=attention.head_dim,
                attention_scale=float(attention.scaling),
                hidden_act=mlp.config.hidden_act,
            )
            self._made_for = state
        return self._native

    def __getstate__(self) -> dict[str, Any]:
        """For copy and pickle: the native layer is made anew."""
        return {**self.__dict__, "_native": None, "_made_for": (), "_checked": None}


# Places in KernelDecoderLayer._parts.
_NORMS, _LINEARS = slice(0, 4), slice(4, 11)
_QUERY, _KEY, _ATTENTION, _MLP, _ACTIVATION = 4, 5, 11, 12, 13


def adopt(model: nn.Module) -> None:
    """Turn every decoder layer of transformers' BitNet into ours, in place."""
    for module in model.modules():
        if type(module) is BitNetDecoderLayer:
            module.__class__ = KernelDecoderLayer


def _may_be_native(x: Tensor, kwargs: dict[str, Any]) -> bool:
    """Whether the call asks for one token a sequence, and for nothing that the native layer does not do."""
    if torch.is_grad_enabled() or x.dim() != 3 or x.shape[1] != 1 or not 0 < len(x) <= _MOST_SEQUENCES:
        return False
    if x.dtype not in _FLOATS or x.device.type != "cpu" or not x.is_contiguous():
        return False
    if not kwargs.keys() <= _KNOWN | _CACHES or kwargs.get("attention_mask") is not None:
        return False
    if torch.compiler.is_compiling() or _has_any_global_hook():  # type: ignore[no-untyped-call]
        return False
    angles = kwargs.get("position_embeddings")
    return angles is not None and all(_fits(part, x) for part in angles)


def _fits(angles: Tensor, x: Tensor) -> bool:
    """Whether these are cosines or sines for one token a sequence, or one token for all."""
    return angles.dtype in _FLOATS and angles.shape[:-1] in ((1, 1), (len(x), 1)) and angles.is_contiguous()


def _have_known_classes(parts: list[Any]) -> bool:
    mlp = parts[_MLP]
    name = mlp.config.hidden_act if type(mlp) is BitNetMLP else ""
    return (
        type(parts[_ATTENTION]) is BitNetAttention
        and all(type(norm) is BitNetRMSNorm for norm in parts[_NORMS])
        and all(type(layer) is KernelLinear for layer in parts[_LINEARS])
        and all(layer.bias is None and layer.rms_norm is None for layer in parts[_LINEARS])
        and name in _ACTIVATIONS
        and type(parts[_ACTIVATION]) is type(ACT2FN[name])
    )


def _is_untouched(module: nn.Module) -> bool:
    """Whether calling the module means its class's `forward` and nothing else."""
    own = module.__dict__
    return not (own["_forward_hooks"] or own["_forward_pre_hooks"] or "forward" in own)


def _array(tensor: Tensor) -> NDArray[Any]:
    """The tensor's memory as NumPy sees it; bfloat16 as its bits."""
    array: NDArray[Any] = (tensor.view(torch.uint16) if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array
