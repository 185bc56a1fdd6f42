"""A run's state in one safetensors file: masters, Adam's moments, the step. Nothing else is needed to go on
bit for bit, because data order and schedule are functions of the configuration and the step.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from bitnet.errors import FormatError, ResourceError
from bitnet.nn import Transformer

FILE = "state.safetensors"
_MOMENTS = ("exp_avg", "exp_avg_sq")


def save_state(directory: Path, model: Transformer, optimizer: torch.optim.AdamW, step: int) -> None:
    """Write the state after `step` optimiser steps; the old file stays until the new one is whole.

    Raises:
        ResourceError: the disk is full or not writable.
    """
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"master.{name}"] = parameter.detach()
        for moment in _MOMENTS:
            if parameter in optimizer.state:
                tensors[f"{moment}.{name}"] = optimizer.state[parameter][moment]
    temporary = directory / f".{FILE}.tmp"
    try:
        save_file(tensors, temporary, metadata={"step": str(step)})
        os.replace(temporary, directory / FILE)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise ResourceError(f"{directory / FILE}: cannot be written ({error}); free disk space") from None


def load_state(directory: Path, model: Transformer, optimizer: torch.optim.AdamW | None = None) -> int:
    """Fill model and optimiser from a saved state; returns the number of steps done.

    Raises:
        FormatError: the file is missing, damaged or of another model.
    """
    path = directory / FILE
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            step = int((file.metadata() or {})["step"])
            for name, parameter in model.named_parameters():
                parameter.copy_(file.get_tensor(f"master.{name}"))
                if optimizer is not None and step > 0:
                    optimizer.state[parameter] = {
                        "step": torch.tensor(float(step)),
                        **{moment: file.get_tensor(f"{moment}.{name}") for moment in _MOMENTS},
                    }
    except FileNotFoundError:
        raise FormatError(f"{path}: not found; there is no training state to resume here") from None
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise FormatError(f"{path}: not a state of this model ({error})") from None
    return step
