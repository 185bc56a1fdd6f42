"""Runs of the small model in base.yaml, each a few settings away from it, and what they recorded."""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes

Rows = list[dict[str, str]]  # of one metrics file
Runs = dict[str, list[Rows]]  # by variant, a metrics file a seed

BASE = Path(__file__).with_name("base.yaml")
SINGLE_STAGE = ["schedule.learning_rate.recipe=linear", "schedule.weight_decay.recipe=constant"]
# each kind of layer at the best of 2, 4 and 8e-3 in runs of 700,000 tokens
FLOAT32 = [*SINGLE_STAGE, "schedule.quantized=false", "schedule.learning_rate.peak=8e-3"]


@dataclass(frozen=True)
class Texts:
    """What every run learns from and is measured on.

    Attributes:
        data: a prepared folder, read `passes` times; its order, not its amount, depends on that.
        heldout: folders or texts.
        tokenizer: the tokenizer.json of the folder.
    """

    data: str
    heldout: Sequence[str]
    tokenizer: Path
    passes: float = 1.0


def train(folder: Path, texts: Texts, seed: int, changes: Sequence[str], threads: int) -> None:
    """Train one variant; a finished run is kept, a broken one resumed."""
    if (folder / "finished").exists():
        return
    command = [sys.executable, "-m", "bitnet", "train", "--out", str(folder), "--threads", str(threads)]
    if (folder / "training.yaml").exists():
        command.append("--resume")
    else:
        settings = [
            f"data.sources={json.dumps([{'path': texts.data, 'passes': texts.passes}])}",
            f"data.heldout={json.dumps(list(texts.heldout))}",
            f"seed={seed}",
            *changes,
        ]
        command += [str(BASE), "--tokenizer", str(texts.tokenizer)]
        command += [part for setting in settings for part in ("--set", setting)]
    subprocess.run(command, check=True)
    (folder / "finished").touch()


def read(path: Path) -> Rows:
    """The rows of one metrics file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_runs(out: Path, seeds: Mapping[str, int]) -> Runs:
    """The metrics of every variant, `seeds` runs of each."""
    return {
        name: [read(out / f"{name}-{seed}" / "metrics.csv") for seed in range(count)]
        for name, count in seeds.items()
    }


def series(rows: Rows, column: str) -> tuple[list[float], list[float]]:
    """Millions of tokens, and the column, where it has a value."""
    kept = [row for row in rows if row[column]]
    return [float(row["tokens"]) / 1e6 for row in kept], [float(row[column]) for row in kept]


def heldout_columns(rows: Rows) -> list[str]:
    """Names of the bits-per-byte columns."""
    return [column for column in rows[0] if column.startswith("heldout:")]


def finals(seeds: list[Rows], column: str) -> str:
    """The last values of a column: their mean, and each seed's."""
    values = [series(rows, column)[1][-1] for rows in seeds]
    return f"{statistics.mean(values):.4f} ({', '.join(f'{value:.4f}' for value in values)})"


def draw_heldout(axes: Axes, runs: Runs) -> None:
    """Held-out bits per byte over tokens, a colour a variant and a line a seed."""
    column = heldout_columns(next(iter(runs.values()))[0])[0]
    for number, (name, seeds) in enumerate(runs.items()):
        for seed, rows in enumerate(seeds):
            axes.plot(*series(rows, column), color=f"C{number}", linewidth=1.2, label=None if seed else name)
    axes.set(xlabel="million tokens", ylabel="held-out bits per byte")
    axes.grid(alpha=0.3)
