"""Pictures of a run: loss and rates, zeros and flips of its codes, its schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.figure import Figure

from bitnet.errors import InputError
from bitnet.train.record import CODES, METRICS, read_rows


def plot_run(directory: Path) -> None:
    """Draw metrics.csv as loss.png and codes.csv as codes.png, where they hold rows.

    Raises:
        FormatError: a row is damaged.
        OSError: a picture cannot be written.
    """
    metrics, codes = read_rows(directory / METRICS), read_rows(directory / CODES)
    if metrics:
        _plot_loss(metrics, directory / "loss.png")
    if codes:
        _plot_codes(codes, directory / "codes.png")


def plot_schedule(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path, unit: str
) -> None:
    """Draw curves over the run, a panel each.

    Args:
        curves: by name, positions and values.
        path: its ending gives the format, `.png` and `.svg` among them; without one it is PNG.
        unit: of the positions.
    Raises:
        InputError: no picture has such an ending.
    """
    kind = path.suffix[1:].lower() or "png"
    if kind not in FigureCanvasBase.get_supported_filetypes():
        raise InputError(f"{path}: pictures are not written as {path.suffix}; use .png, .svg or .pdf")
    figure = Figure(figsize=(7, 1 + 1.7 * len(curves)), dpi=110, layout="constrained")
    panels = figure.subplots(len(curves), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (name, (positions, values)) in zip(panels, curves.items(), strict=True):
        axes.plot(positions, values, linewidth=1.2)
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel(unit)
    figure.savefig(path, format=kind)


def _plot_loss(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    figure = Figure(figsize=(7.5, 6), dpi=110, layout="constrained")
    left, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _line(left, rows, "loss", color="0.6", label="training loss")
    left.set_ylabel("nats per token")
    names = [name for name in rows[0] if name.startswith(("heldout:", "packed:"))]
    if names:
        right = left.twinx()
        right.set_ylabel("bits per byte")
        texts = list(dict.fromkeys(name.partition(":")[2] for name in names))
        for name in names:
            color = f"C{texts.index(name.partition(':')[2])}"
            line, marker = (":", "x") if name.startswith("packed:") else ("-", ".")
            label = name.replace("$", r"\$")  # or it would begin a formula
            _line(right, rows, name, color=color, marker=marker, linestyle=line, label=label)
        if right.lines:  # a run that ends early has evaluated nothing
            right.legend(loc="upper right", fontsize="small")
    _line(below, rows, "learning_rate", color="C0")
    below.set(xlabel="million tokens", ylabel="learning rate")
    decay = below.twinx()
    _line(decay, rows, "weight_decay", color="C1", linestyle="--")
    decay.set_ylabel("weight decay (dashed)")
    figure.savefig(path)


def _line(axes: Axes, rows: Sequence[Mapping[str, str]], column: str, **style: Any) -> None:
    """One column over millions of tokens, where it has values."""
    points = [(int(row["tokens"]) / 1e6, float(row[column])) for row in rows if row.get(column)]
    if len(points) == 1:
        style["marker"] = "."  # a line of one point is invisible
    if points:
        axes.plot(*zip(*points, strict=True), linewidth=1.0, **style)


def _plot_codes(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """A colour a kind of projection, a line a layer."""
    figure = Figure(figsize=(7.5, 6), dpi=110, layout="constrained")
    zeros, flips = figure.subplots(2, 1, sharex=True)
    layers: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        layers.setdefault(row["layer"], []).append(row)
    kinds: list[str] = []
    for layer, points in layers.items():
        kind = layer.rsplit(".", 1)[-1]
        label = None if kind in kinds else kind  # once in the legend
        if label:
            kinds.append(kind)
        for axes, column in ((zeros, "zero_fraction"), (flips, "flip_rate")):
            kept = [row for row in points if row[column]]
            steps, shares = [int(row["step"]) for row in kept], [float(row[column]) for row in kept]
            axes.plot(steps, shares, color=f"C{kinds.index(kind)}", linewidth=0.9, label=label)
    zeros.set_ylabel("share of zero codes")
    flips.set(xlabel="step", ylabel="codes flipped since the last point")
    zeros.legend(fontsize="x-small", ncols=4)
    figure.savefig(path)
