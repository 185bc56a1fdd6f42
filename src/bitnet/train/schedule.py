"""The two-stage schedule of BitNet b1.58 (Training Tips, Code and FAQ of arXiv 2402.17764).

Two straight lines over the whole horizon, each from its peak after the warm-up to zero at the last step:
the first is followed up to the switch, then the rate jumps down to the second, and weight decay ends:

    lr(t) = peak · (steps - t) / (steps - warmup)     peak = first before the switch, second from it on
    wd(t) = weight_decay before the switch, 0 from it on

During the warm-up the rate rises linearly to the first peak. The loss falls late, in the second stage.
"""

from __future__ import annotations

from bitnet.train.config import TrainingConfig


def learning_rate(config: TrainingConfig, step: int) -> float:
    """The rate of optimiser step `step`, counted from 0."""
    warmup = min(config.warmup_steps, config.steps - 1)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    peak = config.second_learning_rate if in_second_stage(config, step) else config.learning_rate
    return peak * (config.steps - step) / (config.steps - warmup)


def weight_decay(config: TrainingConfig, step: int) -> float:
    """The decoupled weight decay of optimiser step `step`."""
    return 0.0 if in_second_stage(config, step) else config.weight_decay


def in_second_stage(config: TrainingConfig, step: int) -> bool:
    """Whether `step` lies behind the switch."""
    return step >= config.switch * config.steps
