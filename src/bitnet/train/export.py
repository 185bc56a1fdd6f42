"""A trained model as a Hugging Face folder: packed codes, or bfloat16 masters.

The packed file holds the very codes the forward pass saw: they come from the same function on the same
float32 masters. Rounding the masters to bfloat16 first would flip some of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer as TokenizerFile

from bitnet.config import ModelConfig, QuantizationMode
from bitnet.formats.checkpoint import write_checkpoint
from bitnet.formats.tensor import Tensor
from bitnet.nn import BitLinear, Transformer
from bitnet.nn.bitlinear import ternary_codes
from bitnet.quantize.packing import pack_2bit
from bitnet.train.tokenizer import save_tokenizer


def export(model: Transformer, tokenizer: TokenizerFile, directory: Path, mode: QuantizationMode) -> None:
    """Write config, weights and tokenizer as a new folder.

    Args:
        model: of an online configuration.
        mode: `offline` packs (2 bits a weight), `online` keeps masters in bfloat16.
    Raises:
        InputError: the folder exists and is not empty.
        ResourceError: the disk has no room.
    """
    config = model.config.with_quantization(mode)
    write_checkpoint(directory, config, checkpoint_tensors(model, config))
    save_tokenizer(tokenizer, directory, config.max_position_embeddings)


def checkpoint_tensors(model: Transformer, config: ModelConfig) -> dict[str, Tensor]:
    """The model's parameters as `config`, packed or online, stores them."""
    packed = config.quantization.quantization_mode == "offline"
    quantised = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, BitLinear)}
    tensors = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if packed and name in quantised:
            codes, scale = ternary_codes(values)
            tensors[name] = _tensor("U8", pack_2bit(codes.to(torch.int8).numpy()))
            tensors[f"{name}_scale"] = _tensor("BF16", _bfloat16(scale.reshape(1)))
        else:
            tensors[name] = _tensor("BF16", _bfloat16(values))
    return tensors


def _tensor(dtype: str, data: NDArray[np.generic]) -> Tensor:
    return Tensor(dtype, data.shape, data)


def _bfloat16(values: torch.Tensor) -> NDArray[np.uint16]:
    bits: NDArray[np.uint16] = values.to(torch.bfloat16).view(torch.uint16).numpy()
    return bits
