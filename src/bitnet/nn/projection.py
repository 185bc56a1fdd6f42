"""Which linear layer a configuration's projections are: trainable masters, or the codes of a packed file."""

from __future__ import annotations

from bitnet.config import ModelConfig
from bitnet.nn.bitlinear import BitLinear
from bitnet.nn.frozen_bitlinear import FrozenBitLinear


def projection(
    config: ModelConfig, name: str, in_features: int, out_features: int, bias: bool
) -> BitLinear | FrozenBitLinear:
    """`BitLinear` for an online configuration, `FrozenBitLinear` for an offline (packed) one.

    Args:
        name: of the projection, "q_proj"; its recipe depends on it.
    """
    recipe = config.quantization.recipe(name, out_features)
    if config.quantization.quantization_mode == "online":
        return BitLinear(in_features, out_features, bias=bias, recipe=recipe)
    return FrozenBitLinear(in_features, out_features, bias=bias, recipe=recipe)
