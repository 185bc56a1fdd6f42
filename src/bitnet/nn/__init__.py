"""PyTorch layers of the BitNet line: the reference that training runs and every engine is held to."""

from bitnet.nn.bitlinear import BitLinear
from bitnet.nn.cache import KeyValueCache
from bitnet.nn.convert import convert
from bitnet.nn.frozen_bitlinear import FrozenBitLinear
from bitnet.nn.transformer import Transformer

__all__ = ["BitLinear", "FrozenBitLinear", "KeyValueCache", "Transformer", "convert"]
