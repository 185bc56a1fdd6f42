"""Which linear layer a configuration's projections are: trainable masters, or the codes of a packed file."""

from __future__ import annotations

from bitnet.config import ModelConfig
from bitnet.nn.bitlinear import BitLinear, FrozenBitLinear


def projection(
    config: ModelConfig, in_features: int, out_features: int, bias: bool
) -> BitLinear | FrozenBitLinear:
    """`BitLinear` for an online configuration, `FrozenBitLinear` for an offline (packed) one."""
    if config.quantization.quantization_mode == "online":
        return BitLinear(in_features, out_features, bias=bias)
    return FrozenBitLinear(in_features, out_features, bias=bias)
