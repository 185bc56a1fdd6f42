"""A run's curve: one CSV row an interval, and the picture of it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

_COLUMNS = ("step", "tokens", "loss", "learning_rate", "weight_decay", "gradient_norm", "tokens_per_second")


class Record:
    """The rows of `loss.csv`: loss in nats a token, mean over the interval; held-out in bits per byte.

    A resumed run drops the rows behind its step, which the interrupted one had written but not saved.
    """

    def __init__(self, directory: Path, heldout: Sequence[str], step: int) -> None:
        self._path = directory / "loss.csv"
        self._columns = [*_COLUMNS, *(f"heldout:{name}" for name in heldout)]
        kept = [row for row in read_rows(self._path) if int(row["step"]) <= step] if step else []
        with self._path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)

    def add(self, values: dict[str, float]) -> None:
        """Append one row; columns without a value stay empty."""
        row = {
            name: value if name in ("step", "tokens") else f"{value:.5g}" for name, value in values.items()
        }
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a `loss.csv`, empty where there is none."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def plot(directory: Path) -> None:
    """Draw `loss.csv` as `loss.png`: loss and bits per byte; the second stage starts at the dotted line."""
    from matplotlib.figure import Figure  # slow to import, and only here

    rows = read_rows(directory / "loss.csv")
    if not rows:
        return
    figure = Figure(figsize=(7, 4), dpi=90, layout="constrained")
    left = figure.add_subplot()
    steps = [int(row["step"]) for row in rows]
    left.plot(steps, [float(row["loss"]) for row in rows], color="0.6", linewidth=0.8, label="training loss")
    left.set(xlabel="step", ylabel="nats per token")
    switched = [int(row["step"]) for row in rows if float(row["weight_decay"]) == 0]
    if switched:
        left.axvline(switched[0], color="0.3", linewidth=0.8, linestyle=":")
    names = [column for column in rows[0] if column.startswith("heldout:")]
    if names:
        right = left.twinx()
        right.set_ylabel("bits per byte")
        for name in names:
            points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
            right.plot(*zip(*points, strict=True), marker=".", label=name.replace("heldout:", "held out: "))
        right.legend(loc="upper right", fontsize="small")
    figure.savefig(directory / "loss.png")
