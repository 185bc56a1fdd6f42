"""load_model: a folder, a GGUF file, a Hub id or the embedded model, run by the engine of your choice."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Literal, get_args

from bitnet.config import ModelConfig
from bitnet.errors import ConfigError, FormatError, InputError, ResourceError
from bitnet.formats.checkpoint import Checkpoint, read_checkpoint
from bitnet.generate.model import Model
from bitnet.quantize.kv_cache import KvType
from bitnet.tokenizer import Tokenizer

Engine = Literal["cpu", "torch"]


def load_model(
    path_or_id: str | Path | None = None,
    engine: Engine = "cpu",
    threads: int | None = None,
    *,
    kv_dtype: KvType = "auto",
    head: Literal["auto", "full", "shortlist"] = "auto",
    isa: str | None = None,
) -> Model:
    """Load a model that can generate.

    Args:
        path_or_id: a folder, a GGUF file, a Hub id such as "microsoft/bitnet-b1.58-2B-4T", or None for the
            embedded story model.
        engine: "cpu" (C++, fast) or "torch" (the readable reference; needs the `torch` extra).
        threads: None lets the engine decide: BITNET_THREADS, else the physical cores.
        kv_dtype: what the cpu engine keeps keys and values in; "auto" follows the configuration, which most
            often means float16. The torch engine always follows the configuration, 16 bits being float32.
        head: whether the cpu engine may take unlikely logits from 4-bit weights; see CpuModel.
        isa: forces one of the cpu engine's instruction sets, as BITNET_ISA does.
    Raises:
        FormatError, ConfigError, UnsupportedError: the checkpoint is damaged, contradicts itself, or needs
            more than the library has.
        InputError: an argument is out of range.
        ResourceError: the model cannot be downloaded, or the engine is not installed.
    """
    if engine not in get_args(Engine):
        raise InputError(f"engine is {engine!r}; known are 'cpu' and 'torch'")
    if threads is not None and threads < 1:
        raise InputError(f"threads is {threads}; it must be at least 1")
    if engine != "cpu" and (isa is not None or kv_dtype != "auto" or head != "auto"):
        raise InputError("isa, kv_dtype and head are options of the 'cpu' engine; leave them out")
    checkpoint = read_checkpoint(embedded_model() if path_or_id is None else path_or_id)
    tokenizer = load_tokenizer(checkpoint)
    try:
        if engine == "cpu":
            from bitnet.cpu_model import CpuModel
        else:
            from bitnet.torch_model import TorchModel
    except ModuleNotFoundError as error:
        raise ResourceError(
            f"the {engine} engine is not installed: {error}; ./setup.sh brings the cpu engine, "
            "./setup.sh --with torch the torch one"
        ) from None
    match engine:
        case "cpu":
            return CpuModel.from_checkpoint(
                checkpoint, tokenizer, threads=threads, kv_dtype=kv_dtype, head=head, isa=isa
            )
        case "torch":
            return TorchModel.from_checkpoint(checkpoint, tokenizer, threads=threads)


def embedded_model() -> Path:
    """The folder of the story model that comes with the package.

    Raises:
        FormatError: this copy of the package was built without it.
    """
    folder = Path(str(resources.files("bitnet") / "assets" / "stories"))
    if not (folder / "config.json").is_file():
        raise FormatError(f"{folder}: the embedded model is missing; reinstall the package or name a model")
    return folder


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer beside a checkpoint or inside its file, or None where it brings none.

    Raises:
        ConfigError: it knows more tokens than the model has.
    """
    if checkpoint.read_tokenizer is not None:
        files = checkpoint.read_tokenizer()
        tokenizer = (
            None
            if files is None
            else Tokenizer.from_json(files.tokenizer_json, files.settings, checkpoint.where)
        )
    elif checkpoint.directory is not None:
        tokenizer = Tokenizer.from_directory(checkpoint.directory)
    else:
        return None
    if tokenizer is not None:
        _check_vocabulary(tokenizer, checkpoint.config, checkpoint.where)
    return tokenizer


def _check_vocabulary(tokenizer: Tokenizer, config: ModelConfig, where: str) -> None:
    # a smaller one is common: embeddings are padded to a multiple of a power of two
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, but vocab_size in config.json is "
            f"{config.vocab_size}; they belong to different models"
        )
