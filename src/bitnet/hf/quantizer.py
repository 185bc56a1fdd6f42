"""What transformers asks when it loads a checkpoint of `quant_method` "bitnet": which modules, which tensors.

Packed checkpoints load into `KernelLinear`. Masters (`quantization_mode: online`) load as they are, are
quantised once, as `bitnet.quantize` defines it, and go: the model is a packed one from then on, and is saved
as such. On another device than the CPU everything is left to transformers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.quantizers.quantizer_bitnet import BitNetHfQuantizer
from transformers.quantizers.quantizers_utils import should_convert_module

from bitnet.config import VARIANT_ARCHITECTURE
from bitnet.errors import FormatError, UnsupportedError
from bitnet.hf.linear import KernelHead, KernelLinear, share_input
from bitnet.hf.mapped_pages import PageReleaser
from bitnet.quantize.packing import pack_2bit
from bitnet.quantize.weights import ternarize

# Siblings that read one input, in the names of Llama's family: they are multiplied together.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


class KernelQuantizer(BitNetHfQuantizer):  # type: ignore[misc]  # transformers is not followed
    """transformers' own quantizer for BitNet, with our modules in the place of its on a CPU."""

    _on_cpu = True

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what cannot work. On a CPU there is nothing to refuse, nor to warn of."""
        if not _is_cpu(kwargs.get("device_map")):
            super().validate_environment(*args, **kwargs)

    def get_load_operations(self) -> dict[str, Any]:
        """Packed tensors are loaded as they are."""
        return {} if self._on_cpu else super().get_load_operations()

    def _process_model_before_weight_loading(self, model: Any, device_map: Any = None, **kwargs: Any) -> None:
        self._on_cpu = _is_cpu(device_map)
        if not self._on_cpu:
            super()._process_model_before_weight_loading(model, device_map=device_map, **kwargs)
            return
        _refuse_variant(model.config)
        config = self.quantization_config
        self._names = self._quantised_layers(model)
        for name in self._names:
            module = model.get_submodule(name)
            norm = _input_norm(module, config.rms_norm_eps) if config.use_rms_norm else None
            if config.quantization_mode == "offline":
                divides = config.linear_class == "bitlinear"
                model.set_submodule(name, _empty_layer(module, divides, norm, name))
            elif norm is not None:
                module.rms_norm = norm  # its weight is loaded, too
        head = model.get_output_embeddings()
        if type(head) is nn.Linear and head.bias is None:
            model.set_output_embeddings(_empty_head(head))

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        if not self._on_cpu:
            return super()._process_model_after_weight_loading(model, **kwargs)
        pages = PageReleaser()
        for name in self._names:
            layer = model.get_submodule(name)
            pages.add(layer.weight.detach())
            if not isinstance(layer, KernelLinear):
                layer = _quantise(layer, name)
                model.set_submodule(name, layer)
            layer.prepare(name)
        pages.finish()
        for module in model.modules():
            for names in _TOGETHER:
                share_input([getattr(module, name, None) for name in names])
        if model.config.model_type == "bitnet":
            from bitnet.hf.decoder_layer import adopt  # imports the model, which is slow unless it is loaded

            adopt(model)
        self.quantization_config.quantization_mode = "offline"  # model.config holds this very object
        return model

    def _quantised_layers(self, model: Any) -> list[str]:
        """Full names of the layers that a checkpoint of this configuration has packed or is trained for."""
        skipped = self.get_modules_to_not_convert(
            model, self.quantization_config.modules_to_not_convert, model._keep_in_fp32_modules
        )
        return [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and should_convert_module(name, skipped)
        ]


def _refuse_variant(config: Any) -> None:
    """transformers' class for one model loads the files of another, if told to, with a warning only."""
    if VARIANT_ARCHITECTURE in (getattr(config, "architectures", None) or ()):
        raise UnsupportedError(
            f"{config._name_or_path}: transformers' {type(config).__name__} does not describe this model "
            "(model_type bitnet-variant); load it by bitnet.load_model"
        )


def _is_cpu(device_map: Any) -> bool:
    """Whether a device_map, in any of the forms transformers passes, means the CPU alone."""
    if device_map is None:
        return True
    if isinstance(device_map, dict):
        return all(_is_cpu(device) for device in device_map.values() if device != "disk")
    if isinstance(device_map, str) and device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.accelerator.current_accelerator(check_available=True) is None
    return not isinstance(device_map, int) and torch.device(device_map).type == "cpu"


def _input_norm(module: nn.Linear, eps: float) -> nn.Module:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm  # what transformers' own layers take

    with torch.device("meta"):
        norm: nn.Module = LlamaRMSNorm(module.in_features, eps=eps)
    return norm.to(module.weight.dtype)


def _empty_layer(module: nn.Linear, scale_divides: bool, norm: nn.Module | None, name: str) -> KernelLinear:
    """A layer without values for what the checkpoint has in the place of `module`."""
    if module.out_features % 4:
        raise FormatError(f"{name} has {module.out_features} outputs; packed weights need a multiple of 4")
    return KernelLinear(
        module.in_features,
        module.out_features,
        bias=module.bias is not None,
        scale_divides=scale_divides,
        rms_norm=norm,
        dtype=module.weight.dtype,
        device=module.weight.device,
    )


def _empty_head(module: nn.Linear) -> KernelHead:
    weight = module.weight
    return KernelHead(module.in_features, module.out_features, False, weight.device, weight.dtype)


def _quantise(module: nn.Linear, name: str) -> KernelLinear:
    """The packed form of a layer of masters."""
    try:
        codes, scale = ternarize(module.weight.detach().float().numpy())
        packed = pack_2bit(codes)
    except ValueError as error:
        raise FormatError(f"{name}.weight: {error}") from None
    has_bias = module.bias is not None
    norm = getattr(module, "rms_norm", None)
    layer = KernelLinear(module.in_features, module.out_features, has_bias, rms_norm=norm)
    layer.weight = torch.from_numpy(packed)
    layer.weight_scale = torch.from_numpy(np.full(1, scale))  # float32: exactly the scale of the masters
    if has_bias:
        layer.bias = module.bias.detach()
    return layer
