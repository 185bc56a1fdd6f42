"""What a training run is: one frozen dataclass, stored beside its state so that a resume needs no flags."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from bitnet.config import ModelConfig
from bitnet.errors import ConfigError, FormatError

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class DataSource:
    """A text file and how much of it is read.

    Attributes:
        path: UTF-8 text, documents separated by a line `<|endoftext|>`.
        passes: how often the file is read; 0.5 is a random half of it.
        until: its passes are spread over this first part (0..1) of the run's text; the rest of the text
            comes from the other files.
    """

    path: str
    passes: float = 1.0
    until: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.passes < 1e6:
            raise ConfigError(f"data {self.path}: passes is {self.passes}; it must be a positive number")
        if not 0 < self.until <= 1:
            raise ConfigError(f"data {self.path}: until is {self.until}; it must lie in 0..1")

    @classmethod
    def parse(cls, text: str) -> DataSource:
        """Read `FILE`, `FILE:PASSES` or `FILE:PASSES@UNTIL`.

        Raises:
            ConfigError: what follows the last colon is no number.
        """
        path, colon, amount = text.rpartition(":")
        if not colon or "/" in amount or "\\" in amount:
            return cls(text)
        passes, _, until = amount.partition("@")
        try:
            return cls(path, float(passes), float(until or 1))
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(
                f"data {text!r}: {amount!r} is no amount; write FILE:PASSES or FILE:PASSES@UNTIL, "
                "for example stories.txt:3@0.5"
            ) from None


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that decides a run's numbers, and how often it reports.

    Learning rates are the peaks of the two lines of `schedule.py`; lengths are in tokens, `steps`,
    `warmup_steps` and the three intervals in optimiser steps.

    Raises:
        ConfigError: a value is impossible; the message names it.
    """

    model: ModelConfig
    data: tuple[DataSource, ...]
    steps: int
    heldout: tuple[str, ...] = ()
    batch_size: int = 8
    sequence_length: int = 256
    learning_rate: float = 1.5e-3
    second_learning_rate: float = 1e-3
    warmup_steps: int = 100
    switch: float = 0.5
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    seed: int = 0
    precision: Precision = "float32"
    compile: bool = False
    log_every: int = 10
    evaluate_every: int = 250
    save_every: int = 250

    def __post_init__(self) -> None:
        for key in ("steps", "batch_size", "sequence_length", "log_every", "evaluate_every", "save_every"):
            if getattr(self, key) < 1:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must be at least 1")
        for key in ("learning_rate", "second_learning_rate", "clip"):
            if not getattr(self, key) > 0:
                raise ConfigError(f"{key} is {getattr(self, key)}; it must be positive")
        if self.warmup_steps < 0 or self.weight_decay < 0:
            raise ConfigError("warmup_steps and weight_decay must not be negative")
        if not 0 < self.switch <= 1:
            raise ConfigError(f"switch is {self.switch}; the second stage starts at a fraction in 0..1")
        if not self.data:
            raise ConfigError("no data to train on; name at least one text file")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision is {self.precision!r}; known are float32 and bfloat16")
        longest = self.model.max_position_embeddings
        if self.sequence_length > longest:
            raise ConfigError(
                f"sequence_length is {self.sequence_length}; the model's max_position_embeddings is {longest}"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens an optimiser step learns from."""
        return self.batch_size * self.sequence_length

    def save(self, path: Path) -> None:
        """Write as JSON, atomically."""
        values = asdict(self) | {"model": self.model.to_dict()}
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> TrainingConfig:
        """Read what `save` wrote.

        Raises:
            FormatError: the file is missing or damaged.
            ConfigError: a key is unknown or a value impossible.
        """
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FormatError(f"{path}: not found; there is no training run to resume here") from None
        except (OSError, ValueError) as error:
            raise FormatError(f"{path}: not readable as JSON ({error})") from None
        unknown = set(values) - {item.name for item in fields(cls)}
        if unknown:
            raise ConfigError(f"{path}: unknown key {min(unknown)!r}")
        try:
            values["model"] = ModelConfig.from_dict(values["model"], str(path))
            values["data"] = tuple(DataSource(**source) for source in values["data"])
            values["heldout"] = tuple(values.get("heldout", ()))
            values["betas"] = tuple(values.get("betas", (0.9, 0.95)))
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise FormatError(f"{path}: not a training configuration ({error})") from None
