"""PyTorch layers of BitNet b1.58: the readable reference that training runs and every engine is held to."""

from bitnet.nn.bitlinear import BitLinear, FrozenBitLinear
from bitnet.nn.cache import KeyValueCache
from bitnet.nn.convert import convert
from bitnet.nn.transformer import Transformer

__all__ = ["BitLinear", "FrozenBitLinear", "KeyValueCache", "Transformer", "convert"]
