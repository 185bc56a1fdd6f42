"""A run's numbers on disk: `metrics.csv` and `metrics.jsonl`, one row an interval; `codes.csv`, one a layer.

A row counts once its newline is written. A resumed run drops the rows behind its step, which the interrupted
one had written but not saved. Columns that only the interrupted one had stay, empty in new rows.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitnet.errors import FormatError, ResourceError

METRICS, LINES, CODES = "metrics.csv", "metrics.jsonl", "codes.csv"
_CODE_COLUMNS = ("step", "layer", "zero_fraction", "flip_rate")


class Record:
    """Appends rows; every row is whole on disk before the next one begins.

    Args:
        directory: the run's folder.
        columns: of metrics.csv; "step" is the first. JSON rows hold the values that a row has.
        step: rows after it are dropped.
    Raises:
        FormatError: a row of an earlier process is damaged; a torn last line is not, it is dropped.
        ResourceError: a file cannot be written; the methods raise it too.
    """

    def __init__(self, directory: Path, columns: Sequence[str], step: int) -> None:
        self._metrics, self._lines, self._codes = (directory / name for name in (METRICS, LINES, CODES))
        # all is read before anything is written: an error changes no file
        old, rows = _read_table(self._metrics)
        _, codes = _read_table(self._codes)
        lines = enumerate(_whole_lines(self._lines), 1)
        kept = [line for number, line in lines if _step(self._lines, number, line) <= step]
        self._columns = [*columns, *(name for name in old if name not in columns)]
        _replace(self._metrics, _csv(self._columns, [row for row in rows if int(row["step"]) <= step]))
        _replace(self._codes, _csv(_CODE_COLUMNS, [row for row in codes if int(row["step"]) <= step]))
        _replace(self._lines, "".join(f"{line}\n" for line in kept))

    def add(self, values: Mapping[str, float]) -> None:
        """One row of metrics; columns without a value stay empty, in JSON they are left out."""
        short = {name: value if isinstance(value, int) else f"{value:.6g}" for name, value in values.items()}
        _append(self._metrics, _csv(self._columns, [short], header=False))
        # JSON has no NaN
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        _append(self._lines, json.dumps(finite) + "\n")

    def rows(self) -> list[dict[str, float]]:
        """What metrics.jsonl holds so far; values that are no number are left out."""
        rows = [json.loads(line) for line in _whole_lines(self._lines)]
        return [{name: value for name, value in row.items() if value is not None} for row in rows]

    def add_codes(self, step: int, layers: Mapping[str, tuple[float, float]]) -> None:
        """Zero fraction and flip rate of every layer; a rate that is not known yet stays empty."""
        rows = []
        for layer, (zeros, flips) in layers.items():
            rate = "" if math.isnan(flips) else f"{flips:.6g}"
            rows.append(dict(zip(_CODE_COLUMNS, (step, layer, f"{zeros:.6g}", rate), strict=True)))
        _append(self._codes, _csv(_CODE_COLUMNS, rows, header=False))


def read_rows(path: Path) -> list[dict[str, str]]:
    """The whole rows of a CSV file of the record, empty where there is none.

    Raises:
        FormatError: a row is damaged.
    """
    return _read_table(path)[1]


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows; every row has a cell for every column and a step."""
    reader = csv.DictReader(io.StringIO("\n".join(_whole_lines(path)), newline=""))
    rows: list[dict[str, str]] = []
    try:
        for row in reader:
            # too many cells come under the key None, missing ones have it as their value
            if None in row or None in row.values() or not _is_step(row.get("step")):
                raise _damaged(path, reader.line_num)
            rows.append(row)
    except csv.Error:
        raise _damaged(path, reader.reader.line_num) from None
    return list(reader.fieldnames or ()), rows


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file that end; a killed process may have left a piece of one."""
    if not path.exists():
        return []
    content = path.read_bytes()
    try:
        return content[: content.rfind(b"\n") + 1].decode().split("\n")[:-1]
    except UnicodeDecodeError as error:
        raise _damaged(path, content[: error.start].count(b"\n") + 1) from None


def _step(path: Path, number: int, line: str) -> int:
    """The step of a row of metrics.jsonl."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        step = None
    if type(step) is not int:
        raise _damaged(path, number)
    return step


def _is_step(cell: str | None) -> bool:
    return cell is not None and cell.isascii() and cell.isdigit() and len(cell) < 20


def _damaged(path: Path, line: int) -> FormatError:
    return FormatError(
        f"{path}: line {line} is damaged, no row of a run's record; remove the line, or move the file away"
    )


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]], header: bool = True) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", newline="", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise _unwritten(path, error) from None


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            file.write(text)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _unwritten(path, error) from None


def _unwritten(path: Path, error: OSError) -> ResourceError:
    return ResourceError(
        f"{path}: cannot be written ({error.strerror or error}); free disk space, then --resume goes on from "
        "the last checkpoint"
    )
