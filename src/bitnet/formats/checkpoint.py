"""Checkpoint: a configuration and its named tensors, the one middle type of readers, engines and writers.

Whatever the files say, a linear layer is handed out one way: packed codes and float32 scales that
multiply, y = (codes x) * scale. Masters are quantised here; `bitlinear` scales are inverted here.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.config import ModelConfig
from bitnet.errors import ConfigError, InputError, ResourceError
from bitnet.formats.hub import resolve
from bitnet.formats.safetensors import (
    SINGLE_FILE,
    disk_error,
    file_order,
    read_checkpoint_files,
    write_safetensors,
)
from bitnet.formats.tensor import NUMPY_DTYPES, Tensor
from bitnet.formats.tensor_names import norm_inside
from bitnet.formats.validate import multipliers, validate
from bitnet.json_file import CONFIG_BYTES, read_json_object
from bitnet.quant_config import LinearRecipe
from bitnet.quantize.packing import pack, unpack
from bitnet.quantize.weights import quantize_weight

LLAMA3_VOCABULARY, LLAMA3_END_OF_TURN = 128256, 128009  # <|eot_id|>, which 2B4T's config.json does not name


@dataclass(frozen=True)
class QuantizedLinear:
    """One quantised linear layer; `bitnet.quantize.linear` says what it computes.

    Attributes:
        packed: uint8 (out / 4, in) or (out / 8, in), the layouts of `bitnet.quantize.packing`.
        scales: float32 (recipe.scales,), always the multiplying convention.
        bias: float32 (out,), or None.
        norm_weight: float32 (in,), of the norm inside, or None.
        recipe: which quantisers.
    """

    packed: NDArray[np.uint8]
    scales: NDArray[np.float32]
    bias: NDArray[np.float32] | None
    norm_weight: NDArray[np.float32] | None
    recipe: LinearRecipe

    @property
    def scale(self) -> np.float32:
        """The one scale of the whole matrix; a defect to ask where there are several."""
        (scale,) = self.scales
        return np.float32(scale)

    def codes(self) -> NDArray[np.int8]:
        """int8, (out, in)."""
        return unpack(self.packed, self.recipe.weights)


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer that stands inside a model's file, as the two files it would be beside a folder's.

    Attributes:
        tokenizer_json: the content of tokenizer.json.
        settings: the content of tokenizer_config.json.
    """

    tokenizer_json: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A validated model on disk or in memory.

    Attributes:
        config: the shape.
        tensors: every tensor `config` promises, by its published name, and no other.
        where: what to call the checkpoint in messages.
        directory: its folder, or None for one that is a single file or lives in memory.
        stop_tokens: ids that end an answer.
        read_tokenizer: makes the tokenizer inside a single file, or gives None; None where a folder has it.
    """

    config: ModelConfig
    tensors: Mapping[str, Tensor]
    where: str
    directory: Path | None
    stop_tokens: frozenset[int]
    read_tokenizer: Callable[[], TokenizerFiles | None] | None = None

    def tensor(self, name: str) -> Tensor:
        """The tensor of that full name, e.g. "model.norm.weight"; KeyError where there is none."""
        return self.tensors[name]

    def linear(self, name: str) -> QuantizedLinear:
        """The linear layer `name`, e.g. "model.layers.0.self_attn.q_proj"; KeyError where there is none.

        Packed weights are the mapped bytes as they are; masters are quantised anew on every call.
        """
        weight, quantization = self.tensors[f"{name}.weight"], self.config.quantization
        packed_rows = quantization.codes_a_byte if weight.dtype == "U8" else 1
        recipe = quantization.recipe(name, weight.shape[0] * packed_rows)
        if weight.dtype == "U8":
            packed, scales = weight.data, multipliers(self.config, self.tensors[f"{name}.weight_scale"])
        else:
            codes, scales = quantize_weight(weight.float32(), recipe)
            packed = pack(codes, recipe.weights)
        return QuantizedLinear(
            packed,
            scales,
            self._floats(f"{name}.bias"),
            self._floats(norm_inside(self.config, name)) if recipe.norm is not None else None,
            recipe,
        )

    def _floats(self, name: str) -> NDArray[np.float32] | None:
        tensor = self.tensors.get(name)
        return None if tensor is None else tensor.float32()


def read_checkpoint(path_or_id: str | Path) -> Checkpoint:
    """Open a local folder, a GGUF file, or a Hub repository after downloading it, and check everything in it.

    Raises:
        FormatError: files are missing, damaged, or contradict config.json.
        ConfigError, UnsupportedError: config.json is wrong or asks for what the library lacks.
        ResourceError: the download failed.
    """
    directory = resolve(path_or_id)
    if directory.is_file():
        from bitnet.formats.gguf import read_gguf  # which imports this module

        return read_gguf(directory)
    config = ModelConfig.from_file(directory / "config.json")
    tensors = validate(config, read_checkpoint_files(directory), str(directory))
    return Checkpoint(config, tensors, str(directory), directory, _stop_tokens(config, directory))


def write_checkpoint(
    directory: str | Path,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write config.json, generation_config.json and model.safetensors as a new folder.

    The folder appears complete or not at all.

    Args:
        directory: must not exist, or be empty.
        tensors: exactly what `config` promises; checked before anything is written.
        metadata: strings for the file's header; {"format": "pt"} if None, as transformers expects.
    Raises:
        FormatError: the tensors contradict the configuration.
        InputError: the folder exists and is not empty.
        ResourceError: the disk has no room.
    """
    tensors = validate(config, tensors, str(directory))
    shapes = file_order({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
    write_model_files(directory, config, shapes, (tensors[name].data for name in shapes), metadata)


def write_model_files(
    directory: str | Path,
    config: ModelConfig,
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    blocks: Iterable[NDArray[Any]],
    metadata: Mapping[str, str] | None = None,
    files: Mapping[str, bytes] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """`write_checkpoint` for tensors that are made while they are written, unchecked.

    Args:
        files: more files of the folder by name; they replace generated ones.
        progress: called with the bytes written so far and their total, block by block.
    """
    if progress is not None:
        blocks = _reported(blocks, shapes, progress)
    with _new_folder(Path(directory)) as folder:
        write_safetensors(folder / SINGLE_FILE, shapes, blocks, metadata or {"format": "pt"})
        _write_json(folder / "config.json", config.to_dict())
        eos = list(config.eos_token_id)
        _write_json(
            folder / "generation_config.json",
            {"bos_token_id": config.bos_token_id, "eos_token_id": eos[0] if len(eos) == 1 else eos or None},
        )
        for name, content in (files or {}).items():
            (folder / name).write_bytes(content)


def _reported(
    blocks: Iterable[NDArray[Any]],
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    progress: Callable[[int, int], None],
) -> Iterator[NDArray[Any]]:
    total = sum(NUMPY_DTYPES[dtype].itemsize * math.prod(shape) for dtype, shape in shapes.values())
    done = 0
    for block in blocks:
        yield block
        done += block.nbytes
        progress(done, total)


@contextmanager
def _new_folder(directory: Path) -> Iterator[Path]:
    """A temporary sibling that becomes `directory` when the block ends well, and vanishes otherwise."""
    check_new_folder(directory)
    directory = directory.resolve()  # a link's target, not the link, is replaced
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    except OSError as error:
        raise disk_error(error, directory) from None
    try:
        temporary.chmod(0o755)  # mkdtemp's 0o700 would hide the model from others
        yield temporary
        os.replace(temporary, directory)
    except OSError as error:
        raise error if isinstance(error, ResourceError) else disk_error(error, directory) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new_folder(directory: Path) -> None:
    """Raises InputError: a folder cannot be made there, because something is, or it is the current one."""
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        raise InputError(f"{directory}: exists already; choose a new folder or remove it first")
    if directory.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise InputError(f"{directory}: is the folder this runs in, or above it; name a new folder")


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _stop_tokens(config: ModelConfig, directory: Path) -> frozenset[int]:
    """End-of-sequence ids of config.json and generation_config.json, and Llama 3's end of turn."""
    stop = set(config.eos_token_id)
    if config.vocab_size == LLAMA3_VOCABULARY:
        stop.add(LLAMA3_END_OF_TURN)
    path = directory / "generation_config.json"
    if path.exists():
        eos = read_json_object(path, CONFIG_BYTES).get("eos_token_id")
        for token in [] if eos is None else eos if isinstance(eos, list) else [eos]:
            if type(token) is not int or not 0 <= token < config.vocab_size:
                raise ConfigError(
                    f"{path}: eos_token_id is {token!r}; it must lie in 0..{config.vocab_size - 1}"
                )
            stop.add(token)
    return frozenset(stop)
