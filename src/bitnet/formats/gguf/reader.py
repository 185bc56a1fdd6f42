"""read_gguf: a file of one of BitNet's architectures as a `Checkpoint`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bitnet.config import ModelConfig
from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats.checkpoint import LLAMA3_END_OF_TURN, LLAMA3_VOCABULARY, Checkpoint
from bitnet.formats.gguf.container import Container, StoredTensor, read_container
from bitnet.formats.gguf.hyperparameters import architecture, read_config
from bitnet.formats.gguf.i2_s_layout import check_layout
from bitnet.formats.gguf.metadata import Metadata
from bitnet.formats.gguf.tensor_names import SCALE, published_name
from bitnet.formats.gguf.tensors import as_bfloat16, float_tensor, ternary_tensor
from bitnet.formats.gguf.ternary_blocks import read_scale
from bitnet.formats.gguf.vocabulary import read_tokenizer
from bitnet.formats.tensor import Tensor
from bitnet.formats.tensor_names import EMBEDDING, HEAD
from bitnet.formats.validate import validate


def read_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file and check everything in it.

    Ternary matrices become packed codes and a float32 scale, whichever of I2_S, TQ1_0 and TQ2_0 they are
    stored in; they are decoded when their data is asked for.

    Raises:
        FormatError: the file is cut off, damaged, or contradicts its keys.
        ConfigError: a key is missing or impossible.
        UnsupportedError: an architecture, tensor type or layout that is not read; the message names it.
    """
    container = read_container(path)
    _refuse_parts(container.metadata)
    name = architecture(container.metadata)
    check_layout(container, name)
    config = read_config(container)
    tensors = validate(config, _tensors(container, config), str(path))
    return Checkpoint(
        config,
        tensors,
        str(path),
        None,
        _stop_tokens(config),
        lambda: read_tokenizer(container.metadata, config),
    )


def _refuse_parts(metadata: Metadata) -> None:
    parts = metadata.integer("split.count")
    if parts is not None and parts > 1:
        raise UnsupportedError(
            f"{metadata.where}: is one of {parts} parts of a model; join them with llama.cpp's "
            "`llama-gguf-split --merge`"
        )


def _tensors(container: Container, config: ModelConfig) -> dict[str, Tensor]:
    where = container.metadata.where
    tensors: dict[str, Tensor] = {}
    factors: dict[str, StoredTensor] = {}
    for stored in container.tensors.values():
        name = published_name(stored.name)
        if name is None:
            raise FormatError(f"{where}: the architecture has no place for the tensor {stored.name}")
        if name.endswith(f".{SCALE}"):
            factors[name] = stored
        elif name.endswith("_proj.weight"):
            tensors[name] = ternary_tensor(stored, where)
            scale = read_scale(stored.type, stored.raw, f"{where}: {stored.name}")
            tensors[f"{name.removesuffix('.weight')}.{SCALE}"] = Tensor.of(np.array([scale], np.float32))
        else:
            tensor = float_tensor(stored)
            tensors[name] = as_bfloat16(tensor) if name in (EMBEDDING, HEAD) else tensor
    for name, stored in factors.items():
        tensors[name] = _multiplied(tensors.get(name), stored, where)
    return tensors


def _multiplied(scale: Tensor | None, factor: StoredTensor, where: str) -> Tensor:
    """A weight's own scale times that of a tensor beside it."""
    if scale is None or factor.shape != (1,) or factor.type.name != "F32":
        raise FormatError(
            f"{where}: {factor.name} is {factor.type.name} of shape {list(factor.shape)}; expected one F32 "
            "beside a weight of that name"
        )
    with np.errstate(over="ignore"):  # infinity is refused where scales are checked
        return Tensor.of(scale.float32() * factor.raw.view("<f4"))


def _stop_tokens(config: ModelConfig) -> frozenset[int]:
    stop = set(config.eos_token_id)
    if config.vocab_size == LLAMA3_VOCABULARY:
        stop.add(LLAMA3_END_OF_TURN)
    return frozenset(stop)
