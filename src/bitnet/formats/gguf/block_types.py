"""The tensor types of GGUF: their ids, and how many bytes a block of elements takes.

I2_S is bitnet.cpp's: the whole tensor in blocks of 128, and one tail of 32 bytes that begins with the scale.
Every other type cuts each row into blocks. bitnet.cpp and llama.cpp give some ids to different types, and the
byte order of bitnet.cpp's TL1 and TL2 depends on the machine they were made for, so what is not read is
refused by name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bitnet.errors import FormatError, UnsupportedError


@dataclass(frozen=True)
class BlockType:
    """One tensor type.

    Attributes:
        elements, bytes: of a block.
        tail: bytes behind the last block of a tensor.
    """

    name: str
    id: int
    elements: int
    bytes: int
    tail: int = 0

    def size(self, shape: tuple[int, ...], where: str) -> int:
        """Bytes of a tensor of this shape (row-major, the last axis contiguous).

        Raises:
            FormatError: blocks do not divide it.
        """
        count, unit = math.prod(shape), "tensor" if self.tail else "row"
        length = count if self.tail else shape[-1]
        if length % self.elements:
            raise FormatError(
                f"{where} is {self.name} of shape {list(shape)}; a {unit} of {length} is not a multiple of "
                f"{self.elements}, the size of its blocks"
            )
        return count // self.elements * self.bytes + self.tail


F32 = BlockType("F32", 0, 1, 4)
F16 = BlockType("F16", 1, 1, 2)
Q8_0 = BlockType("Q8_0", 8, 32, 34)
Q4_K = BlockType("Q4_K", 12, 256, 144)
Q6_K = BlockType("Q6_K", 14, 256, 210)
BF16 = BlockType("BF16", 30, 1, 2)
TQ1_0 = BlockType("TQ1_0", 34, 256, 54)
TQ2_0 = BlockType("TQ2_0", 35, 256, 66)
I2_S = BlockType("I2_S", 36, 128, 32, tail=32)

TERNARY = (I2_S, TQ1_0, TQ2_0)
_READABLE = {item.id: item for item in (F32, F16, BF16, Q8_0, Q4_K, Q6_K, *TERNARY)}

_WAY_OUT = "take the model's safetensors or its I2_S file instead"
_MACHINE_BOUND = f"its bytes are laid out for one machine's kernels; {_WAY_OUT}"
_ROTATED = "a Bonsai type of PrismML, whose weights are rotated, which only its own fork undoes"
_REFUSED = {
    2: "Q4_0",
    3: "Q4_1",
    6: "Q5_0",
    7: "Q5_1",
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    13: "Q5_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    37: "I8_S of bitnet.cpp",
    38: f"TL1 of bitnet.cpp ({_MACHINE_BOUND})",
    39: f"TL2 of bitnet.cpp ({_MACHINE_BOUND}) or MXFP4 of llama.cpp",
    40: "NVFP4",
    41: "Q1_0",
    42: f"Q2_0 of llama.cpp or TL2 of bitnet.cpp ({_MACHINE_BOUND})",
    142: f"PQ2_0 ({_ROTATED})",
    143: f"PTQ1_0 ({_ROTATED})",
}


def block_type(type_id: int, where: str) -> BlockType:
    """The type of that id; `where` names the tensor.

    Raises:
        UnsupportedError: it is not read; the message names it as far as it is known.
    """
    if type_id in _READABLE:
        return _READABLE[type_id]
    readable = ", ".join(item.name for item in _READABLE.values())
    known = _REFUSED.get(type_id, "which neither llama.cpp nor bitnet.cpp had when this was written")
    raise UnsupportedError(
        f"{where} has type {type_id}, {known}; readable are {readable}: {_WAY_OUT}, or convert it with the "
        "program that made it"
    )
