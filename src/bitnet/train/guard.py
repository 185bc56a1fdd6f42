"""Which optimiser steps are too bad to take, and when there are too many of them.

A step is bad when its loss or gradient norm is not finite or, if asked for, when the norm exceeds `spike`
times its running mean (0.99 of the old mean and 0.01 of the new norm, once 20 steps were seen). A bad step is
skipped and counted; its norm does not enter the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from bitnet.errors import FormatError
from bitnet.train.config import GuardConfig

_SEEN_ENOUGH = 20  # the first norms of a run are no measure for the later ones


class Guard:
    """Judges steps; its state belongs to the checkpoint, as later verdicts depend on it.

    Attributes:
        skipped: bad steps so far.
        in_a_row: bad steps since the last good one.
    """

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self.skipped = self.in_a_row = 0
        self._mean, self._seen = 0.0, 0

    def accepts(self, loss: float, norm: float) -> bool:
        """Whether the step may change the weights; counts it either way."""
        bad = not (math.isfinite(loss) and math.isfinite(norm))
        if not bad and self._config.spike is not None and self._seen >= _SEEN_ENOUGH:
            bad = norm > self._config.spike * self._mean
        if bad:
            self.skipped += 1
            self.in_a_row += 1
            return False
        self.in_a_row = 0
        self._mean = norm if self._seen == 0 else 0.99 * self._mean + 0.01 * norm
        self._seen += 1
        return True

    @property
    def exhausted(self) -> bool:
        """Whether `patience` steps in a row were bad."""
        return self.in_a_row >= self._config.patience

    def state(self) -> dict[str, float]:
        """Plain values for the checkpoint."""
        return {
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "mean": self._mean,
            "seen": self._seen,
        }

    def restore(self, state: Mapping[str, Any], where: str) -> None:
        """Take over what `state` gave.

        Raises:
            FormatError: it is something else; `where` names the file.
        """
        try:
            self.skipped, self.in_a_row = int(state["skipped"]), int(state["in_a_row"])
            self._mean, self._seen = float(state["mean"]), int(state["seen"])
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{where}: guard holds no state of the guard ({error!r})") from None
