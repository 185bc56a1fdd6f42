"""What a run shows while it trains, on stderr: a bar in a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_LOG_SECONDS = 60.0


class Reporter:
    """Takes every step's loss and every evaluation's result."""

    def __init__(self, console: Console, bar: Progress | None, steps: int) -> None:
        self._console, self._bar, self._steps = console, bar, steps
        self._task = bar.add_task("", total=steps, loss=float("nan")) if bar else None
        self._last = 0.0

    def step(self, step: int, loss: float) -> None:
        """After each optimiser step; loss in nats a token."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, loss=loss)
        elif time.monotonic() - self._last > _LOG_SECONDS:
            self._last = time.monotonic()
            self._console.print(f"step {step}/{self._steps}  loss {loss:.3f}", highlight=False)

    def evaluation(self, step: int, results: dict[str, float]) -> None:
        """Bits per byte of each held-out text."""
        if results:
            text = "  ".join(f"{name} {value:.4f}" for name, value in results.items())
            self._console.print(f"step {step}: {text} bits per byte", highlight=False)


@contextmanager
def reporter(steps: int) -> Iterator[Reporter]:
    """A `Reporter` for a run of `steps` steps; its bar ends with the block."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Reporter(console, None, steps)
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        yield Reporter(console, bar, steps)
