"""A trained model as a Hugging Face folder: packed codes, or bfloat16 masters.

The packed file holds the very codes the forward pass saw: they come from the same function on the same
float32 masters. Rounding masters to bfloat16 flips some codes (0.04 % was measured), so a master whose code
would change is rounded to the neighbour on its code's side of the threshold instead: both files hold the
same codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer as TokenizerFile
from torch.distributed.tensor import DTensor

from bitnet.config import ModelConfig
from bitnet.formats.checkpoint import write_checkpoint
from bitnet.formats.tensor import Tensor
from bitnet.formats.tensor_names import projections
from bitnet.nn import Transformer
from bitnet.nn.bitlinear import ternary_codes
from bitnet.quant_config import QuantizationMode
from bitnet.quantize.packing import pack_2bit
from bitnet.train.tokenizer import save_tokenizer

_MOST_NUDGES = 50  # each moves the scale by less than the last; two or three are usual


def whole_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """Every parameter, gathered from all processes, float32 on the CPU; all of them must call it."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()
        for name, value in model.named_parameters()
    }


def export(
    tensors: Mapping[str, torch.Tensor],
    config: ModelConfig,
    tokenizer: TokenizerFile,
    directory: Path,
    mode: QuantizationMode,
    chat_template: str | None = None,
) -> None:
    """Write config, weights and tokenizer as a new folder.

    Args:
        tensors: float32 masters by name, `whole_tensors`.
        mode: `offline` packs (2 bits a weight), `online` keeps masters in bfloat16.
        chat_template: the tokenizer's, if it has one.
    Raises:
        InputError: the folder exists and is not empty.
        ResourceError: the disk has no room.
    """
    config = config.with_quantization(mode)
    write_checkpoint(directory, config, checkpoint_tensors(tensors, config))
    save_tokenizer(tokenizer, directory, config.max_position_embeddings, chat_template)


def checkpoint_tensors(tensors: Mapping[str, torch.Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Float32 masters as `config`, packed or online, stores them."""
    packed = config.quantization.quantization_mode == "offline"
    quantised = {f"{name}.weight" for name in projections(config)}
    result = {}
    for name, values in tensors.items():
        if name not in quantised:
            result[name] = _tensor("BF16", _bits(values))
        elif packed:
            codes, scale = ternary_codes(values)
            result[name] = _tensor("U8", pack_2bit(codes.to(torch.int8).numpy()))
            result[f"{name}_scale"] = _tensor("BF16", _bits(scale.reshape(1)))
        else:
            result[name] = _tensor("BF16", _bits(bfloat16_with_codes_of(values)))
    return result


def bfloat16_with_codes_of(weight: torch.Tensor) -> torch.Tensor:
    """Round float32 masters to bfloat16 such that their ternary codes stay what they are.

    Values next to a threshold move by one bfloat16 step where nearest rounding would cross it. The few that
    move shift the mean a little, so the codes are compared again until all agree.
    """
    codes, _ = ternary_codes(weight)
    rounded = weight.to(torch.bfloat16)
    bits = rounded.view(torch.int16)
    for _ in range(_MOST_NUDGES):
        now, _ = ternary_codes(rounded)
        wrong = now != codes
        if not wrong.any():
            break
        # sign and magnitude: adding one to the bits moves away from zero on both sides
        outwards = torch.where(now.abs() < codes.abs(), 1, -1).to(torch.int16)
        bits += outwards * wrong
    return rounded


def _tensor(dtype: str, data: NDArray[np.generic]) -> Tensor:
    return Tensor(dtype, data.shape, data)


def _bits(values: torch.Tensor) -> NDArray[np.uint16]:
    bits: NDArray[np.uint16] = values.to(torch.bfloat16).view(torch.uint16).numpy()
    return bits
