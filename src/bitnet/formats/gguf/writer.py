"""write_gguf: a `Checkpoint` as a GGUF file that llama.cpp or bitnet.cpp reads.

Codes are carried over exactly. Norms and biases become float32, which holds them exactly; the embedding and
an untied head become F16, Q8_0 or Q6_K.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitnet.config import ModelConfig
from bitnet.errors import UnsupportedError
from bitnet.formats.checkpoint import Checkpoint
from bitnet.formats.gguf import float_blocks, ternary_blocks
from bitnet.formats.gguf.block_types import F16, F32, I2_S, Q6_K, Q8_0, TQ1_0, TQ2_0, BlockType
from bitnet.formats.gguf.container_writer import Planned, Writable, write_container
from bitnet.formats.gguf.hyperparameters import END_TOKENS, write_config
from bitnet.formats.gguf.i2_s_layout import X86
from bitnet.formats.gguf.tensor_names import gguf_name
from bitnet.formats.gguf.tensors import QuantizedTensor
from bitnet.formats.tensor_names import EMBEDDING, FINAL_NORM, HEAD, norms, projections

TernaryType = Literal["i2_s", "tq2_0", "tq1_0"]
EmbeddingType = Literal["f16", "q8_0", "q6_k"]

_TERNARY: dict[TernaryType, BlockType] = {"i2_s": I2_S, "tq2_0": TQ2_0, "tq1_0": TQ1_0}
_EMBEDDING: dict[EmbeddingType, BlockType] = {"f16": F16, "q8_0": Q8_0, "q6_k": Q6_K}
# llama.cpp's numbers for "mostly this type", and bitnet.cpp's for I2_S
_FILE_TYPE: dict[TernaryType, int] = {"i2_s": 40, "tq2_0": 37, "tq1_0": 36}
_QUANTIZATION_VERSION = 2
_CHUNK = 1 << 22  # elements of an embedding encoded at once

_log = logging.getLogger(__name__)


def write_gguf(
    path: Path,
    checkpoint: Checkpoint,
    ternary: TernaryType,
    embedding: EmbeddingType = "f16",
    tokenizer: Mapping[str, Writable] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Write a file; it appears complete or not at all.

    Args:
        path: must not exist.
        tokenizer: the keys of `vocabulary.write_tokenizer`; None writes a file that takes ids only.
        progress: called with the bytes written so far and their total.
    Returns:
        The largest relative change of a projection's scale; 0 in I2_S.
    Raises:
        InputError: the file exists.
        UnsupportedError: a matrix does not divide into the type's blocks, or a number does not fit its type.
        ResourceError: the disk has no room.
    """
    kind, plan = _TERNARY[ternary], _plan(checkpoint, _TERNARY[ternary], _EMBEDDING[embedding])
    metadata: dict[str, Writable] = write_config(checkpoint.config, _ends(checkpoint))
    architecture = metadata["general.architecture"]
    stem = Path(checkpoint.where).stem or "bitnet"
    metadata["general.name"] = stem.encode("utf-8", "replace").decode()  # names of files need not be text
    metadata["general.file_type"] = _FILE_TYPE[ternary]
    metadata["general.quantization_version"] = _QUANTIZATION_VERSION
    if kind is I2_S:
        metadata[f"{architecture}.i2_s_layout"] = X86
    else:
        for reason in _refused_by_llama_cpp(checkpoint.config):
            _log.warning("%s: llama.cpp will not load this file: %s", path, reason)
    metadata |= {"tokenizer.ggml.model": "none"} if tokenizer is None else tokenizer
    tensors = {gguf_name(name): item for name, item in plan.items()}
    errors: list[float] = []
    blocks = _blocks(checkpoint, plan, errors)
    if progress is not None:
        total = sum(item.size(name) for name, item in tensors.items())
        blocks = _reported(blocks, total, progress)
    write_container(path, metadata, tensors, blocks)
    return max(errors)


def _refused_by_llama_cpp(config: ModelConfig) -> list[str]:
    """What of a shape llama.cpp's loader has no place for (`src/models/bitnet.cpp` there)."""
    reasons = {
        "it does not know bitnet.cpp's architecture, and would compute SiLU in the place of "
        + config.hidden_act: config.hidden_act != "silu",
        "it takes the head from the embedding": not config.tie_word_embeddings,
        "its projections have no biases": config.attention_bias or config.mlp_bias,
        f"it wants heads of hidden_size in sum, not {config.query_size}": config.query_size
        != config.hidden_size,
    }
    return [reason for reason, holds in reasons.items() if holds]


def _plan(checkpoint: Checkpoint, kind: BlockType, embedding: BlockType) -> dict[str, Planned]:
    """Type and shape of every tensor by its published name, in the order of the file."""
    config, where = checkpoint.config, checkpoint.where
    departures = config.quantization.departures()
    if departures:
        listed = ", ".join(f"{key} {value!r}" for key, value in departures.items())
        raise UnsupportedError(
            f"{where}: GGUF has no place for {listed}; only b1.58 as 2B4T has it can be written. Convert to "
            "'packed' or 'bf16'"
        )
    plan = {}
    for name in (EMBEDDING, HEAD):
        if name in checkpoint.tensors:
            plan[name] = Planned(embedding, checkpoint.tensors[name].shape)
    for name, width in norms(config).items():
        plan[name] = Planned(F32, (width,))
    for name, shape in projections(config).items():
        plan[f"{name}.weight"] = Planned(kind, shape)
        if f"{name}.bias" in checkpoint.tensors:
            plan[f"{name}.bias"] = Planned(F32, shape[:1])
    for name, item in plan.items():
        if (np.prod(item.shape) if item.type.tail else item.shape[-1]) % item.type.elements:
            raise UnsupportedError(
                f"{where}: {name} has rows of {item.shape[-1]}; {item.type.name} stores "
                + ("whole matrices" if item.type.tail else "rows")
                + f" in blocks of {item.type.elements}, which do not divide it: {_alternative(item.type)}"
            )
    last = plan.pop(FINAL_NORM)
    return plan | {FINAL_NORM: last}


def _alternative(kind: BlockType) -> str:
    if kind is I2_S:
        return "keep this model packed"
    return "write I2_S, whose rows may be of any width" if kind in (TQ1_0, TQ2_0) else "take --embedding f16"


def _ends(checkpoint: Checkpoint) -> tuple[int, ...]:
    first = checkpoint.config.eos_token_id
    ends = (*first, *sorted(checkpoint.stop_tokens - set(first)))
    if len(ends) > END_TOKENS:
        _log.warning(
            "%s: %d tokens end an answer, but GGUF has places for %d; %s are left out",
            checkpoint.where,
            len(ends),
            END_TOKENS,
            ", ".join(map(str, ends[END_TOKENS:])),
        )
    return ends


def _blocks(
    checkpoint: Checkpoint, plan: Mapping[str, Planned], errors: list[float]
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    for name, item in plan.items():
        owner = name.removesuffix(".weight")
        if item.type in _TERNARY.values():
            linear = checkpoint.linear(owner)
            scale = ternary_blocks.stored_scale(item.type, linear.scale, f"{checkpoint.where}: {owner}")
            errors.append(abs(float(scale) / float(linear.scale) - 1))
            pieces = ternary_blocks.from_packed(item.type, linear.packed, linear.scale)
        elif item.type is F32:
            pieces = iter([checkpoint.tensors[name].float32().view(np.uint8)])
        else:
            pieces = _encode_rows(checkpoint, name, item.type)
        for piece in pieces:
            yield gguf_name(name), piece


def _encode_rows(checkpoint: Checkpoint, name: str, kind: BlockType) -> Iterator[NDArray[np.uint8]]:
    tensor = checkpoint.tensors[name]
    if isinstance(tensor, QuantizedTensor) and tensor.stored.type is kind:
        yield tensor.stored.raw  # encoding it anew would round once more
        return
    rows, columns = tensor.shape
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        values = tensor.rows(start, min(start + step, rows)).float32()
        if kind is F16:
            with np.errstate(over="ignore"):
                half = values.astype("<f2")
            if not np.isfinite(half).all():
                raise UnsupportedError(
                    f"{checkpoint.where}: {name} holds {np.abs(values).max()}, beyond float16's 65504; take "
                    "--embedding q8_0"
                )
            yield half.reshape(-1).view(np.uint8)
        else:
            yield float_blocks.encode(kind, values.reshape(-1, kind.elements)).reshape(-1)


def _reported(
    blocks: Iterator[tuple[str, NDArray[np.uint8]]], total: int, progress: Callable[[int, int], None]
) -> Iterator[tuple[str, NDArray[np.uint8]]]:
    done = 0
    for name, block in blocks:
        yield name, block
        done += block.nbytes
        progress(done, total)
