"""Where a run's weights come from when they are not random: the masters of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from bitnet.config import ModelConfig
from bitnet.errors import InputError
from bitnet.formats.checkpoint import Checkpoint
from bitnet.nn import Transformer
from bitnet.train.config import merge_quantization


def masters_config(checkpoint: Checkpoint) -> ModelConfig:
    """The model configuration of a run that continues from `checkpoint`.

    Its end-of-sequence ids are all that end an answer, so that exports stop where the checkpoint did, though
    their generation_config.json is a new one.

    Raises:
        InputError: it is packed, and codes are no masters: small steps would be lost in them.
    """
    if checkpoint.config.quantization.quantization_mode != "online":
        raise InputError(
            f"{checkpoint.where}: holds packed codes, which training cannot move; continue from its masters "
            "(for 2B4T: microsoft/bitnet-b1.58-2B-4T-bf16)"
        )
    known = checkpoint.config.eos_token_id
    more = sorted(checkpoint.stop_tokens - set(known))
    return replace(checkpoint.config, eos_token_id=(*known, *more))


def model_values(given: object, checkpoint: Checkpoint) -> object:
    """The `model` section of a run that continues from `checkpoint`.

    Args:
        given: what the configuration says. Nothing takes the checkpoint's shape and quantisers, `variant` and
            `quantization_config` alone its shape; anything else stands as it is.
    Raises:
        InputError: as `masters_config`.
    """
    own = masters_config(checkpoint).to_dict()
    if given is None:
        return own
    if not isinstance(given, Mapping) or not set(given) <= {"variant", "quantization_config"}:
        return given
    block = own.pop("quantization_config")
    changes = given.get("quantization_config")
    if "variant" not in given and isinstance(changes, Mapping):
        return own | {"quantization_config": merge_quantization(block, changes)}
    return {**own, **given}


def load_masters(model: Transformer, checkpoint: Checkpoint) -> None:
    """Fill a model, before it is sharded, with the checkpoint's float32 values.

    Raises:
        InputError: the checkpoint is packed or of another shape; the message names the difference.
    """
    masters_config(checkpoint)
    surplus = sorted(set(checkpoint.tensors) - {name for name, _ in model.named_parameters()})
    if surplus:
        raise InputError(
            f"{checkpoint.where}: holds {surplus[0]}, for which this run's model has no place; leave `model` "
            "out to take the checkpoint's shape"
        )
    for name, parameter in model.named_parameters():
        tensor = checkpoint.tensors.get(name)
        if tensor is None or tuple(tensor.shape) != tuple(parameter.shape):
            found = "nothing" if tensor is None else tuple(tensor.shape)
            raise InputError(
                f"{checkpoint.where}: {name} is {tuple(parameter.shape)} in this run's model and {found} in "
                "the checkpoint; leave `model` out to take its shape"
            )
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(tensor.float32()))
