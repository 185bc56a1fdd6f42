"""convert: a model in any readable format, written in any writable one.

Everything goes through one `Checkpoint`. Codes are carried over as codes; requantising codes * scale
would change them, because the mean of |codes * scale| is not the scale. Only full-precision masters are
quantised, and only when the target holds codes.

A scale becomes float16 in TQ1_0 and TQ2_0. In a folder it is bfloat16, as published, where that is exact,
else float32; the embedding and the norms likewise become bfloat16 where that is exact.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from numpy.typing import NDArray

from bitnet.errors import InputError
from bitnet.formats.checkpoint import Checkpoint, check_new_folder, read_checkpoint, write_model_files
from bitnet.formats.gguf.container_writer import Writable
from bitnet.formats.gguf.vocabulary import write_tokenizer
from bitnet.formats.gguf.writer import EmbeddingType, TernaryType, write_gguf
from bitnet.formats.masters import master_blocks, masters_of
from bitnet.formats.safetensors import file_order
from bitnet.formats.tensor import NUMPY_DTYPES, Tensor
from bitnet.formats.tensor_names import count_parameters, projections
from bitnet.load import embedded_model, load_tokenizer
from bitnet.quant_config import WeightKind
from bitnet.quantize.bfloat16 import narrow

Target = Literal["packed", "bf16", "gguf-i2_s", "gguf-tq2_0", "gguf-tq1_0"]
Progress = Callable[[int, int], None]

# what a folder may bring beside its weights and its configuration
_COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_CHUNK = 1 << 22  # elements of a float matrix written at once


@dataclass(frozen=True)
class Conversion:
    """What was written.

    Attributes:
        path: the folder or file.
        weights: what the codes are.
        quantised: whether masters were rounded to codes on the way; else every code is the source's.
        scale_error: the largest relative change of a projection's scale; 0 where all are exact.
        ternary_bits: what a projection's weight takes, binary ones included.
        total_bytes: what the files of weights take.
    """

    path: Path
    target: Target
    weights: WeightKind
    parameters: int
    ternary_parameters: int
    quantised: bool
    scale_error: float
    ternary_bits: float
    total_bytes: int

    @property
    def overall_bits(self) -> float:
        """Bits a parameter takes, whatever its kind."""
        return 8 * self.total_bytes / self.parameters


def convert(
    source: str | Path | None,
    destination: str | Path,
    target: Target,
    embedding: EmbeddingType | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write a model in another format; the result appears complete or not at all.

    Args:
        source: a folder, a GGUF file, a Hub id, or None for the embedded story model.
        destination: a folder for "packed" and "bf16", else a file; must not exist.
        target: "packed" and "bf16" are folders of safetensors that transformers reads too. "bf16" holds
            masters that quantise to the source's codes and scales. "gguf-…" are files for bitnet.cpp (I2_S)
            and llama.cpp.
        embedding: type of embedding and head in a GGUF file; None is "f16".
        progress: called with the bytes written so far and their total.
    Raises:
        InputError: the destination exists, or an argument is none of its choices.
        UnsupportedError: the target cannot hold the model.
        FormatError, ConfigError, ResourceError: as `load_model`.
    """
    if target not in get_args(Target):
        raise InputError(f"target is {target!r}; known are {', '.join(get_args(Target))}")
    if embedding is not None and embedding not in get_args(EmbeddingType):
        raise InputError(f"embedding is {embedding!r}; known are {', '.join(get_args(EmbeddingType))}")
    if embedding is not None and not target.startswith("gguf-"):
        raise InputError(
            f"the embedding of {target!r} is written as it is; leave the choice {embedding!r} out"
        )
    path = Path(destination)
    if target.startswith("gguf-"):
        if path.exists():
            raise InputError(f"{path}: exists already; choose a new name or remove it first")
    else:
        check_new_folder(path)
    checkpoint = read_checkpoint(embedded_model() if source is None else source)
    config = checkpoint.config
    if target.startswith("gguf-"):
        kind = cast(TernaryType, target.removeprefix("gguf-"))
        error = write_gguf(path, checkpoint, kind, embedding or "f16", _tokenizer_keys(checkpoint), progress)
        total = path.stat().st_size
    else:
        error = 0.0
        _write_folder(path, checkpoint, target, progress)
        total = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    masters = config.quantization.quantization_mode == "online"
    return Conversion(
        path=path,
        target=target,
        weights=config.quantization.weights,
        parameters=count_parameters(config),
        ternary_parameters=sum(rows * columns for rows, columns in projections(config).values()),
        quantised=masters and target != "bf16",
        scale_error=error,
        ternary_bits=_ternary_bits(checkpoint, target),
        total_bytes=total,
    )


def _ternary_bits(checkpoint: Checkpoint, target: Target) -> float:
    if target == "bf16" and checkpoint.config.quantization.quantization_mode == "online":
        name = next(iter(projections(checkpoint.config)))
        return 8 * NUMPY_DTYPES[checkpoint.tensors[f"{name}.weight"].dtype].itemsize
    packed = 8 / checkpoint.config.quantization.codes_a_byte
    return {"packed": packed, "bf16": 16, "gguf-i2_s": 2, "gguf-tq2_0": 66 / 32, "gguf-tq1_0": 54 / 32}[
        target
    ]


def _tokenizer_keys(checkpoint: Checkpoint) -> dict[str, Writable] | None:
    tokenizer = load_tokenizer(checkpoint)
    if tokenizer is None:
        return None
    template, bos = tokenizer.chat_template, tokenizer.bos_token_id
    keys = write_tokenizer(
        tokenizer.to_json(),
        checkpoint.config.vocab_size,
        bos is not None,
        None if template is None else template.source,
        checkpoint.where,
    )
    return keys if bos is None else keys | {"tokenizer.ggml.bos_token_id": bos}


def _write_folder(path: Path, checkpoint: Checkpoint, target: Target, progress: Progress | None) -> None:
    config = checkpoint.config
    if target == "packed" or config.quantization.quantization_mode == "offline":
        config = config.with_quantization("offline" if target == "packed" else "online")
        plan = _plan(checkpoint, packed=target == "packed")
    else:  # masters stay as they are: rounding wider ones to bfloat16 could change their codes
        plan = {name: _Planned(tensor.dtype, tensor.shape) for name, tensor in checkpoint.tensors.items()}
    shapes = file_order({name: (item.dtype, item.shape) for name, item in plan.items()})
    blocks: Iterator[NDArray[Any]] = (
        block for name in shapes for block in _blocks(checkpoint, name, plan[name])
    )
    write_model_files(path, config, shapes, blocks, files=_companions(checkpoint), progress=progress)


@dataclass(frozen=True)
class _Planned:
    """A tensor of the folder; `made` says of what: the source's tensor, or a projection's parts."""

    dtype: str
    shape: tuple[int, ...]
    made: Literal["copy", "codes", "scale", "masters"] = "copy"


def _plan(checkpoint: Checkpoint, packed: bool) -> dict[str, _Planned]:
    plan = {}
    together = checkpoint.config.quantization.codes_a_byte
    for name, (rows, columns) in projections(checkpoint.config).items():
        if packed:
            scales = checkpoint.linear(name).scales
            dtype = "BF16" if Tensor.of(scales).fits_bfloat16() else "F32"
            plan[f"{name}.weight"] = _Planned("U8", (rows // together, columns), "codes")
            plan[f"{name}.weight_scale"] = _Planned(dtype, scales.shape, "scale")
        else:
            plan[f"{name}.weight"] = _Planned("BF16", (rows, columns), "masters")
    for name, tensor in checkpoint.tensors.items():
        if name not in plan and not name.endswith(".weight_scale"):
            plan[name] = _Planned("BF16" if tensor.fits_bfloat16() else tensor.dtype, tensor.shape)
    return plan


def _blocks(checkpoint: Checkpoint, name: str, item: _Planned) -> Iterator[NDArray[Any]]:
    owner = name.rpartition(".")[0]
    if item.made == "codes":
        yield checkpoint.linear(owner).packed
    elif item.made == "scale":
        scales = checkpoint.linear(owner).scales
        yield narrow(scales) if item.dtype == "BF16" else scales
    elif item.made == "masters":
        linear = checkpoint.linear(owner)
        if linear.recipe.scales == 1 and linear.recipe.weights == "ternary":
            yield from master_blocks(linear.packed, linear.scale, f"{checkpoint.where}: {owner}")
        else:
            yield masters_of(linear.codes(), linear.scales, linear.recipe, f"{checkpoint.where}: {owner}")
    else:
        tensor = checkpoint.tensors[name]
        step = max(1, _CHUNK * item.shape[0] // math.prod(item.shape))
        for start in range(0, item.shape[0], step):
            part = tensor.rows(start, min(start + step, item.shape[0]))
            yield part.data if part.dtype == item.dtype else narrow(part.float32())


def _companions(checkpoint: Checkpoint) -> dict[str, bytes]:
    """The other files of the new folder: the source's, or made of what its single file holds."""
    if checkpoint.directory is not None:
        paths = (checkpoint.directory / name for name in _COMPANIONS)
        return {path.name: path.read_bytes() for path in paths if path.is_file()}
    files: dict[str, Any] = {
        "generation_config.json": {
            "bos_token_id": checkpoint.config.bos_token_id,
            "eos_token_id": sorted(checkpoint.stop_tokens),
        }
    }
    inside = None if checkpoint.read_tokenizer is None else checkpoint.read_tokenizer()
    tokenizer = load_tokenizer(checkpoint)
    if inside is not None and tokenizer is not None:
        files["tokenizer.json"] = json.loads(inside.tokenizer_json)
        files["tokenizer_config.json"] = dict(inside.settings)
        if tokenizer.chat_template is not None:
            files["tokenizer_config.json"]["chat_template"] = tokenizer.chat_template.source
    return {
        name: (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
        for name, content in files.items()
    }
