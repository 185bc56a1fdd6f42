"""Is a file's I2_S really x86's? Three byte orders share its id, and none is written down.

- A byte that holds the code 3, or a matrix nearly without zeros or nearly of zeros alone, is another layout
  or damaged: training leaves about a third of zeros.
- bitnet.cpp's ARM builds order blocks of 64 weights in 16 bytes. That only permutes the columns within 128,
  which counting codes cannot show. But a trained model ties neurons together: the columns of ffn_down are as
  dense as the rows of ffn_gate and ffn_up they belong to, and as ffn_sub_norm's weights say. Rows stand where
  they are in either order. If they match the columns in ARM's order, and clearly better than in x86's, the
  file is refused.

What shows no such ties, random weights for example, is read as x86's, the official file's order. Files
written here state their order in `{architecture}.i2_s_layout`, which settles it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats.gguf.block_types import I2_S
from bitnet.formats.gguf.container import Container, StoredTensor
from bitnet.formats.gguf.ternary_blocks import to_packed
from bitnet.quantize.packing import count_codes, find_invalid, unpack_2bit

X86 = "x86"
_WAY_OUT = "take the official ggml-model-i2_s.gguf or the model's safetensors"
_SAMPLE = 1 << 20  # bytes of a matrix that are counted
_FEWEST, _MOST = 0.02, 0.98  # share of zeros; trained and random matrices have about a third
_LAYERS = 4  # looked at for ties
# Standard deviations by which chance would have to imitate a tie, and how much better it must be than x86's.
_CERTAIN, _CLEARLY = 8.0, 2.0


def check_layout(container: Container, architecture: str) -> None:
    """Refuse a file whose I2_S is not x86's, as far as that can be told.

    Raises:
        FormatError: the codes cannot be x86's.
        UnsupportedError: the file states another layout, or shows ARM's.
    """
    where = container.metadata.where
    stated = container.metadata.text(f"{architecture}.i2_s_layout")
    if stated not in (None, X86):
        raise UnsupportedError(
            f"{where}: {architecture}.i2_s_layout is {stated[:60]!r}; readable is {X86!r}: {_WAY_OUT}"
        )
    matrices = [item for item in container.tensors.values() if item.type is I2_S]
    for item in matrices:
        _check_codes(item, where, plausible=stated is None)
    if stated is None and matrices:
        _refuse_arm(container.tensors, where)


def _check_codes(item: StoredTensor, where: str, plausible: bool) -> None:
    codes = item.raw[: -item.type.tail].reshape(1, -1)
    invalid = find_invalid(codes)
    if invalid is not None:
        raise FormatError(
            f"{where}: {item.name} holds the code 3 in byte {invalid[1]:,}, which x86's layout of I2_S "
            f"never does; the file is damaged or has another layout: {_WAY_OUT}"
        )
    if not plausible:
        return
    minus, zero, plus, _ = count_codes(codes[:, :_SAMPLE])
    share = zero / (minus + zero + plus)
    if not _FEWEST <= share <= _MOST:
        raise FormatError(
            f"{where}: {share:.1%} of {item.name} is zero, read in x86's layout of I2_S; trained matrices "
            f"have about a third, so this is damaged or another layout: {_WAY_OUT}"
        )


def _refuse_arm(tensors: Mapping[str, StoredTensor], where: str) -> None:
    ties = {X86: [0.0], "ARM": [0.0]}
    layers = [name.split(".")[1] for name in tensors if name.endswith(".ffn_down.weight")]
    for layer in layers[:: max(1, len(layers) // _LAYERS)]:
        parts = [tensors.get(f"blk.{layer}.{part}.weight") for part in ("ffn_down", "ffn_gate", "ffn_up")]
        if not all(part is not None and part.type is I2_S and len(part.shape) == 2 for part in parts):
            continue
        down, gate, up = (part for part in parts if part is not None)
        inner = down.shape[1]
        if inner % 128 or gate.shape[0] != inner or up.shape[0] != inner or down.shape[0] % 4:
            continue
        columns, rows = _density(down, axis=0), _density(gate, axis=1) + _density(up, axis=1)
        ties[X86].append(_tie(columns, rows))
        ties["ARM"].append(_tie(columns[_arm_columns(inner)], rows))
    found = {name: sum(values) / max(1, len(values) - 1) ** 0.5 for name, values in ties.items()}
    if found["ARM"] > _CERTAIN and found["ARM"] > _CLEARLY * abs(found[X86]):
        raise UnsupportedError(
            f"{where}: its I2_S is in the byte order of bitnet.cpp's ARM builds, not x86's (the neurons of "
            f"ffn_gate, ffn_up and ffn_down match in that order only): {_WAY_OUT}"
        )


_ROWS = 64  # packed rows that are looked at together


def _density(item: StoredTensor, axis: int) -> NDArray[np.float64]:
    """Share of codes beside 0 along an axis, as x86's order has them."""
    packed = to_packed(item.type, item.raw, *item.shape)
    quarter, width = packed.shape
    by_row, by_column = np.empty((4, quarter)), np.zeros(width)
    for first in range(0, quarter, _ROWS):  # unpacked, the matrix would take four times the file
        part = packed[first : first + _ROWS]
        nonzero = (unpack_2bit(part) != 0).reshape(4, len(part), width)
        by_row[:, first : first + len(part)] = nonzero.mean(axis=2)
        by_column += nonzero.sum(axis=(0, 1))
    return by_column / (4 * quarter) if axis == 0 else by_row.reshape(-1)


def _tie(columns: NDArray[np.float64], rows: NDArray[np.float64]) -> float:
    """Their correlation in standard deviations of chance (Fisher's z)."""
    a, b = columns - columns.mean(), rows - rows.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    if norm == 0 or len(a) < 4:
        return 0.0
    return float(np.arctanh(np.clip(a @ b / norm, -0.999999, 0.999999)) * np.sqrt(len(a) - 3))


def _arm_columns(width: int) -> NDArray[np.intp]:
    """Where x86's reading puts each column of a matrix in ARM's order.

    ARM: element j of 64 is in byte j % 16 of 16, at shift 6 - 2 (j // 16). Byte b of 32 at shift 6 - 2 n is
    element b + 32 n for x86.
    """
    j = np.arange(128)
    byte = 16 * (j // 64) + j % 16
    n = j % 64 // 16
    place = byte + 32 * n
    return (np.arange(0, width, 128)[:, None] + place).reshape(-1)
