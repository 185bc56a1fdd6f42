"""A trained model as a Hugging Face folder: packed codes, or bfloat16 masters.

The packed file holds the very codes the forward pass saw: they come from the same function on the same
float32 masters. Rounding masters to bfloat16 flips some codes (0.04 % was measured), so a master whose code
would change is rounded to its code's side of the threshold instead: both files hold the same codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
from bitnet.nn.quantizers import middle_of, weight_codes
from bitnet.quant_config import Inputs, LinearRecipe, QuantizationMode
from bitnet.quantize.packing import pack
from bitnet.train.tokenizer import save_tokenizer

_MOST_NUDGES = 50  # each moves the scale by less than the last; two or three are usual


def whole_tensors(model: Transformer) -> dict[str, torch.Tensor]:
    """Every parameter, gathered from all processes, float32 on the CPU; all of them must call it."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()
        for name, value in model.named_parameters()
    }


def computed_config(config: ModelConfig, low_bit: bool) -> ModelConfig:
    """What the forward pass computes: `config`, or in the first of two stages the same with int8 inputs."""
    if low_bit:
        return config
    return replace(config, quantization=replace(config.quantization, inputs=Inputs()))


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
        mode: `offline` packs (1 or 2 bits a weight), `online` keeps masters in bfloat16.
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
    recipes = {
        f"{name}.weight": config.quantization.recipe(name, rows)
        for name, (rows, _) in projections(config).items()
    }
    result = {}
    for name, values in tensors.items():
        recipe = recipes.get(name)
        if recipe is None:
            result[name] = _tensor("BF16", _bits(values))
        elif packed:
            codes, scales = weight_codes(values, recipe)
            result[name] = _tensor("U8", pack(codes.to(torch.int8).numpy(), recipe.weights))
            result[f"{name}_scale"] = _tensor("BF16", _bits(scales))
        else:
            result[name] = _tensor("BF16", _bits(bfloat16_with_codes_of(values, recipe)))
    return result


def bfloat16_with_codes_of(weight: torch.Tensor, recipe: LinearRecipe) -> torch.Tensor:
    """Round float32 masters to bfloat16 such that their codes stay what they are.

    Values next to a threshold move to the side of their code where nearest rounding would cross it: by one
    bfloat16 step for ternary codes, to the neighbour of the mean for binary ones. The few that move shift the
    means a little, so the codes are compared again until all agree.
    """
    codes, _ = weight_codes(weight, recipe)
    rounded = weight.to(torch.bfloat16)
    for _ in range(_MOST_NUDGES):
        wrong = codes - weight_codes(rounded, recipe)[0]  # its sign says where a value belongs
        if not wrong.any():
            break
        if recipe.weights == "binary":
            moved = _beside(middle_of(rounded, recipe).expand_as(wrong), wrong)
        else:
            moved = _next(rounded, wrong)
        rounded = torch.where(wrong != 0, moved, rounded)
    return rounded


def _beside(middle: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    """The bfloat16 nearest to `middle` among those above it (side > 0), or among the others."""
    nearest = middle.to(torch.bfloat16)
    return torch.where((nearest > middle) == (side > 0), nearest, _next(nearest, side))


def _next(values: torch.Tensor, side: torch.Tensor) -> torch.Tensor:
    """The bfloat16 neighbours above (side > 0) or below."""
    return torch.nextafter(values, (side.sign() * torch.inf).to(torch.bfloat16))


def _tensor(dtype: str, data: NDArray[np.generic]) -> Tensor:
    return Tensor(dtype, data.shape, data)


def _bits(values: torch.Tensor) -> NDArray[np.uint16]:
    bits: NDArray[np.uint16] = values.to(torch.bfloat16).view(torch.uint16).numpy()
    return bits
