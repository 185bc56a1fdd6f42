"""A run's numbers on disk: `metrics.csv` and `metrics.jsonl`, one row an interval; `codes.csv`, one a layer.

A resumed run drops the rows behind its step, which the interrupted one had written but not saved.
"""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

METRICS, LINES, CODES = "metrics.csv", "metrics.jsonl", "codes.csv"
_CODE_COLUMNS = ("step", "layer", "zero_fraction", "flip_rate")


class Record:
    """Appends rows; every row is whole on disk before the next one begins.

    Args:
        directory: the run's folder.
        columns: of metrics.csv; "step" is the first. JSON rows hold the values that a row has.
        step: rows after it are dropped.
    """

    def __init__(self, directory: Path, columns: Sequence[str], step: int) -> None:
        self._directory, self._columns = directory, list(columns)
        _rewrite_csv(directory / METRICS, self._columns, step)
        _rewrite_csv(directory / CODES, _CODE_COLUMNS, step)
        kept = [line for line in _lines(directory / LINES) if json.loads(line)["step"] <= step]
        _replace(directory / LINES, "".join(f"{line}\n" for line in kept))

    def add(self, values: Mapping[str, float]) -> None:
        """One row of metrics; columns without a value stay empty, in JSON they are left out."""
        short = {name: value if isinstance(value, int) else f"{value:.6g}" for name, value in values.items()}
        with (self._directory / METRICS).open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(short)
        # JSON has no NaN
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with (self._directory / LINES).open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")

    def add_codes(self, step: int, layers: Mapping[str, tuple[float, float]]) -> None:
        """Zero fraction and flip rate of every layer; a rate that is not known yet stays empty."""
        with (self._directory / CODES).open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            for layer, (zeros, flips) in layers.items():
                writer.writerow([step, layer, f"{zeros:.6g}", "" if math.isnan(flips) else f"{flips:.6g}"])


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, empty where there is none."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _lines(path: Path) -> list[str]:
    """The whole lines of a file; a killed process may have left a piece of one at the end."""
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return text[: text.rfind("\n") + 1].splitlines()


def _rewrite_csv(path: Path, columns: Sequence[str], step: int) -> None:
    """Keep the rows up to `step`, under the columns of today."""
    reader = csv.DictReader(_lines(path))
    rows = [row for row in reader if int(row["step"]) <= step]
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def _replace(path: Path, text: str) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
