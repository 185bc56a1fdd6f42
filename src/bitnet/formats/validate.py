"""What a checkpoint must hold to be run: checked once, when it is opened.

Names, dtypes and shapes follow from the configuration; values are checked exactly: no NaN or infinity in a
float, no scale that is not a positive number, no code 3 in packed weights. Every message names the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from bitnet.config import ModelConfig
from bitnet.errors import FormatError
from bitnet.formats.tensor import FLOATS, Tensor
from bitnet.formats.tensor_names import EMBEDDING, HEAD, Expected, expected_tensors, projections
from bitnet.quantize.packing import find_invalid


def validate(config: ModelConfig, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors the configuration promises, checked.

    Args:
        where: the checkpoint's name in messages.
    Returns:
        `tensors` without a redundant copy of a tied head.
    Raises:
        FormatError: a tensor is missing, unknown, of another dtype or shape, or holds an impossible value.
    """
    if config.num_hidden_layers > len(tensors):  # before as many names are made up
        raise FormatError(
            f"{where}: num_hidden_layers is {config.num_hidden_layers}, but the files hold only "
            f"{len(tensors)} tensors"
        )
    tensors = _drop_tied_head(config, tensors, where)
    _check_mode(config, tensors, where)
    expected = expected_tensors(config)
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise FormatError(f"{where}: {missing[0]} is missing{_and_more(missing)}")
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise FormatError(f"{where}: the configuration has no place for {unknown[0]}{_and_more(unknown)}")
    for name, item in expected.items():
        _check_layout(name, tensors[name], item, where)
    for name, item in expected.items():
        _check_values(config, name, tensors[name], item, where)
    return tensors


def multipliers(config: ModelConfig, stored: Tensor) -> NDArray[np.float32]:
    """A stored `weight_scale` as the factors of y = (codes x) * scale.

    `autobitlinear` stores these factors, `bitlinear` their reciprocals.
    """
    scales = stored.float32().reshape(-1)
    return np.float32(1) / scales if config.quantization.linear_class == "bitlinear" else scales


def _drop_tied_head(config: ModelConfig, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Some writers store a tied head beside the embedding: an equal copy is harmless, another one is not."""
    kept = dict(tensors)
    if config.tie_word_embeddings and HEAD in kept and EMBEDDING in kept:
        head, embedding = kept.pop(HEAD), kept[EMBEDDING]
        if head.dtype != embedding.dtype or not np.array_equal(
            head.data.reshape(-1).view(np.uint8), embedding.data.reshape(-1).view(np.uint8)
        ):
            raise FormatError(
                f"{where}: {HEAD} differs from {EMBEDDING}, but tie_word_embeddings is true; set it to false "
                f"or remove {HEAD}"
            )
    return kept


def _check_mode(config: ModelConfig, tensors: Mapping[str, Tensor], where: str) -> None:
    offline = config.quantization.quantization_mode == "offline"
    for name in projections(config):
        weight = tensors.get(f"{name}.weight")
        if weight is None:
            continue
        if offline and weight.dtype in FLOATS:
            raise FormatError(
                f"{where}: quantization_mode is 'offline' (packed U8 weights), but {name}.weight is "
                f"{weight.dtype} {list(weight.shape)}; set it to 'online' in config.json"
            )
        if not offline and weight.dtype == "U8":
            raise FormatError(
                f"{where}: quantization_mode is 'online' (float masters), but {name}.weight is packed U8 "
                f"{list(weight.shape)}; set it to 'offline' in config.json"
            )


def _check_layout(name: str, tensor: Tensor, expected: Expected, where: str) -> None:
    dtypes = ("U8",) if expected.kind == "packed" else FLOATS
    if tensor.dtype not in dtypes:
        raise FormatError(f"{where}: {name} is {tensor.dtype}; expected {' or '.join(dtypes)}")
    if tensor.shape != expected.shape and not (
        expected.shape == (1,) and expected.kind == "scale" and tensor.shape == ()
    ):
        raise FormatError(
            f"{where}: {name} has shape {list(tensor.shape)}, but the configuration asks for "
            f"{list(expected.shape)}"
        )


def _check_values(config: ModelConfig, name: str, tensor: Tensor, expected: Expected, where: str) -> None:
    if expected.kind == "packed":
        binary = config.quantization.weights == "binary"  # every pattern of bits is a code then
        invalid = None if binary else find_invalid(tensor.data)
        if invalid is not None:
            raise FormatError(
                f"{where}: {name} holds the invalid code 3 in byte {list(invalid)}; the file is damaged"
            )
    elif expected.kind == "scale":
        scales = tensor.float32().reshape(-1)
        # from the smallest normal float32 on, the reciprocal is finite too, whichever convention holds
        wrong = np.flatnonzero(~((np.finfo(np.float32).tiny <= scales) & (scales < np.inf)))
        if wrong.size:
            raise FormatError(f"{where}: {name} is {scales[wrong[0]]}; a scale is a positive finite number")
    else:
        flat = tensor.find_non_finite()
        if flat is not None:
            index = [int(i) for i in np.unravel_index(flat, tensor.shape)]
            raise FormatError(f"{where}: {name} holds NaN or infinity at {index}; the file is damaged")


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
