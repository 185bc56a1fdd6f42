"""What a run shows while it trains, on stderr: a bar in a terminal, a line a minute in a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LOG_SECONDS = 60.0


class ProgressReport:
    """Takes every step's loss and speed, evaluations and notices; `quiet` shows nothing."""

    def __init__(self, quiet: bool) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._bar: Progress | None = None
        self._steps, self._first, self._begun, self._last = 0, 0, 0.0, 0.0

    def start(self, step: int, steps: int) -> None:
        """Before the first step of this process; `step` are done already."""
        self._steps, self._first = steps, step
        self._begun = time.monotonic()
        self._last = float("-inf")
        if self._console.is_terminal and not self._console.quiet:
            columns = (
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s"),
                TimeElapsedColumn(),
                TextColumn("ETA"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console)
            self._bar.add_task("", total=steps, completed=step, loss=float("nan"), speed=0.0)
            self._bar.start()

    def step(self, step: int, loss: float, tokens_per_second: float) -> None:
        """After each optimiser step; loss in nats a token."""
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, loss=loss, speed=tokens_per_second)
        elif time.monotonic() - self._last >= _LOG_SECONDS:
            self._last = time.monotonic()
            left = (self._last - self._begun) / (step - self._first) * (self._steps - step)
            self._print(
                f"step {step}/{self._steps}  loss {loss:.3f}  {tokens_per_second:,.0f} tokens/s  "
                f"ETA {timedelta(seconds=round(left))}"
            )

    def evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """Bits per byte of each held-out text."""
        if results:
            text = "  ".join(f"{name} {value:.4f}" for name, value in results.items())
            self._print(f"step {step}: {text} bits per byte")

    def notice(self, text: str) -> None:
        """A line that must be seen."""
        self._print(text)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
