"""The curves of a run over its steps: learning rate, weight decay, quantiser strength λ, inputs' quantisers.

Recipes become pieces (`Stage`), one function evaluates pieces; p is the position 0..1 in the run:

    two-stage-linear   peak·(1 − p) up to the switch, then second_peak·(1 − p): two straight lines over the
                       whole run with a drop between them (Training Tips, Code and FAQ of arXiv 2402.17764)
    two-stage-cosine   peak·(1 + cos πp)/2 up to the switch, then a cosine from second_peak to 0 over the rest
                       (arXiv 2504.12285 gives shapes and order, no numbers)
    weight decay       two-stage: its peak, and 0 from the switch on; two-stage-cosine: rises along half a
                       cosine to its peak at the switch, then 0 (arXiv 2504.12285: "cosine, reaching a peak")

Warm-up multiplies the rate by (step + 1) / warmup. The loss falls late, in the second stage.

Three curves decide what a step quantises. λ is the strength of all quantisers, of weights and inputs.
Activation bits change from piece to piece: 16 switches the inputs' quantisers off, 8 on. Where they are on,
low-bit inputs say which: 0 int8 everywhere, 1 the model's own, the two stages of arXiv 2411.04965 and
2504.18415. The optimiser does not notice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from bitnet.errors import ConfigError
from bitnet.train.config import ScheduleConfig, Stage

Curve = tuple[Stage, ...]


@dataclass(frozen=True)
class Values:
    """What holds during one optimiser step."""

    learning_rate: float
    weight_decay: float
    quantizer_strength: float
    activation_bits: int
    low_bit: bool


class Schedule:
    """The curves of a configuration for steps of a known size.

    Attributes:
        steps: optimiser steps of the run.
        horizon, warmup: lengths of the run and of the rate's rise, in steps and fractions of one.
        curves: every curve's pieces by name; what a checkpoint stores.
    """

    def __init__(self, config: ScheduleConfig, tokens_per_step: int) -> None:
        """Raises ConfigError: a curve's pieces do not cover the run in order."""
        scale = tokens_per_step if config.unit == "tokens" else 1
        self.steps = math.ceil(config.horizon / scale)
        self.horizon = config.horizon / scale
        warmup = config.learning_rate.warmup
        self.warmup = self.horizon / 50 if warmup is None else warmup / scale
        bits = config.activation_bits if config.quantized else 16
        self.curves: dict[str, Curve] = {
            "learning_rate": _rate(config),
            "weight_decay": _decay(config),
            "quantizer_strength": _strength(config),
            "activation_bits": (Stage(1, bits, bits),),
            "low_bit_inputs": _low_bit(config.low_bit_from),
        } | {str(name): stages for name, stages in config.curves.items()}
        for name, stages in self.curves.items():
            _check(name, stages)

    def at(self, step: int) -> Values:
        """The values of optimiser step `step`, counted from 0."""
        position = step / self.horizon
        ramp = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return Values(
            ramp * evaluate(self.curves["learning_rate"], position),
            evaluate(self.curves["weight_decay"], position),
            evaluate(self.curves["quantizer_strength"], position),
            int(evaluate(self.curves["activation_bits"], position)),
            evaluate(self.curves["low_bit_inputs"], position) == 1,
        )


def evaluate(curve: Sequence[Stage], position: float) -> float:
    """A curve's value at `position` (0..1); beyond its end the last piece's."""
    begin = 0.0
    for stage in curve:
        if position < stage.until or stage is curve[-1]:
            first = begin if stage.begin is None else stage.begin
            last = stage.until if stage.finish is None else stage.finish
            part = min(1.0, max(0.0, (position - first) / (last - first)))
            if stage.shape == "cosine":
                part = (1 - math.cos(math.pi * part)) / 2
            return stage.start + (stage.end - stage.start) * part
        begin = stage.until
    raise AssertionError("a curve has a piece")


def _rate(config: ScheduleConfig) -> Curve:
    rate, switch = config.learning_rate, config.switch
    second = rate.second_peak or rate.peak * 2 / 3
    match rate.recipe:
        case "two-stage-linear":
            return (Stage(switch, rate.peak, 0, finish=1), Stage(1, second, 0, begin=0))
        case "two-stage-cosine":
            return (Stage(switch, rate.peak, 0, "cosine", finish=1), Stage(1, second, 0, "cosine"))
        case "linear" | "cosine":
            return (Stage(1, rate.peak, 0, rate.recipe),)
        case "constant":
            return (Stage(1, rate.peak, rate.peak),)


def _decay(config: ScheduleConfig) -> Curve:
    peak, switch = config.weight_decay.peak, config.switch
    match config.weight_decay.recipe:
        case "two-stage":
            return (Stage(switch, peak, peak), Stage(1, 0, 0))
        case "two-stage-cosine":
            return (Stage(switch, 0, peak, "cosine"), Stage(1, 0, 0))
        case "constant":
            return (Stage(1, peak, peak),)


def _strength(config: ScheduleConfig) -> Curve:
    if not config.quantized:
        return (Stage(1, 0, 0),)
    warmed = config.quantizer_warmup / config.horizon
    if warmed >= 1:
        raise ConfigError("schedule.quantizer_warmup must end before schedule.horizon")
    return (Stage(warmed, 0, 1), Stage(1, 1, 1)) if warmed else (Stage(1, 1, 1),)


def _low_bit(start: float) -> Curve:
    return (Stage(start, 0, 0), Stage(1, 1, 1)) if start else (Stage(1, 1, 1),)


def _check(name: str, stages: Curve) -> None:
    ends = [stage.until for stage in stages]
    if not ends or ends != sorted(set(ends)) or ends[-1] != 1:
        raise ConfigError(f"schedule.curves.{name}: the stages' `until` must rise and end with 1, not {ends}")
    if name == "quantizer_strength" and any(max(stage.start, stage.end) > 1 for stage in stages):
        raise ConfigError(f"schedule.curves.{name}: goes beyond 1, where the quantiser is fully on")
    if name == "activation_bits" and any(
        stage.start != stage.end or stage.end not in (8, 16) for stage in stages
    ):
        raise ConfigError(f"schedule.curves.{name}: a stage starts and ends with 8, or with 16")
    begin = 0.0
    for stage in stages:
        first = begin if stage.begin is None else stage.begin
        if first >= (stage.until if stage.finish is None else stage.finish):
            raise ConfigError(f"schedule.curves.{name}: a stage begins at {first}, behind its finish")
        begin = stage.until
