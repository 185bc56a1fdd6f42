"""AdamW on float32 masters: matrices decay, norms and biases do not (decay would only fight their scale)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from bitnet.nn import Transformer
    from bitnet.train.config import OptimizerConfig
    from bitnet.train.schedule import Values


def build_optimizer(model: Transformer, config: OptimizerConfig) -> torch.optim.AdamW:
    """Two groups, the decaying one first; rates are set a step by `follow_schedule`."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2]},
        {"params": [p for p in parameters if p.ndim < 2]},
    ]
    return torch.optim.AdamW(groups, betas=config.betas, eps=config.eps, weight_decay=0.0, fused=True)


def set_constants(optimizer: torch.optim.AdamW, config: OptimizerConfig) -> None:
    """Put the configuration's over those that a checkpoint brought along."""
    for group in optimizer.param_groups:
        group["betas"], group["eps"] = config.betas, config.eps


def follow_schedule(optimizer: torch.optim.AdamW, values: Values) -> None:
    """Set the learning rate and the weight decay of one optimiser step."""
    for group in optimizer.param_groups:
        group["lr"] = values.learning_rate
    optimizer.param_groups[0]["weight_decay"] = values.weight_decay
