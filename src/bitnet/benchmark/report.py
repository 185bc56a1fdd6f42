"""A measurement as one row: a JSON object for machines, a line of the table for people, a bar of the plot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from bitnet.benchmark.cases import Case
from bitnet.errors import InputError, ResourceError

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One case on one engine.

    Attributes:
        engine: `bitnet`, or the peer's name.
        samples: tokens per second of every repetition, over all sequences.
        step_bytes: bytes of weights that a decode step reads; None for prefill and for peers.
        bandwidth: GB/s of plain reads on these threads.
        live_shares: mean shares of live rows of `up` and live columns of `down` in single tokens so far.
        load_seconds: from the call to the loaded model.
        first_token_seconds: from the same call to the logits after a prompt of one token.
        peak_memory, anonymous_memory: bytes since loading and now; see `machine.Memory`.
        against: the samples of our engine that ran in turn with these; a peer's row only.
        facts: what all rows share: model, machine, version.
    """

    engine: str
    case: Case
    samples: tuple[float, ...]
    step_bytes: int | None = None
    bandwidth: float | None = None
    live_shares: tuple[float, float] | None = None
    load_seconds: float | None = None
    first_token_seconds: float | None = None
    peak_memory: int | None = None
    anonymous_memory: int | None = None
    against: tuple[float, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def rate(self) -> float:
        """Median tokens per second."""
        return median(self.samples)

    @property
    def gigabytes_per_second(self) -> float | None:
        """Weights read per second at the median rate, 10^9 bytes."""
        if self.step_bytes is None:
            return None
        return self.step_bytes * self.rate / self.case.batch / 1e9

    @property
    def bandwidth_share(self) -> float | None:
        rate = self.gigabytes_per_second
        return rate / self.bandwidth if rate is not None and self.bandwidth else None

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """How many times as fast as this peer we are: of medians, and least and most of the pairs in turn."""
        if self.against is None:
            return None
        pairs = [ours / theirs for ours, theirs in zip(self.against, self.samples, strict=True)]
        return median(self.against) / self.rate, min(pairs), max(pairs)

    def to_json(self) -> dict[str, Any]:
        """Flat, in plain units: seconds, bytes, tokens/s, GB/s."""
        up, down = self.live_shares or (None, None)
        values: dict[str, Any] = {
            "engine": self.engine,
            "test": self.case.test,
            "threads": self.case.threads,
            "batch": self.case.batch,
            "depth": self.case.depth,
            "tokens_per_second": _round(self.rate),
            "tokens_per_second_min": _round(min(self.samples)),
            "tokens_per_second_max": _round(max(self.samples)),
            "samples": [_round(value) for value in self.samples],
            "step_bytes": self.step_bytes,
            "gigabytes_per_second": _round(self.gigabytes_per_second),
            "bandwidth_gigabytes_per_second": _round(self.bandwidth),
            "bandwidth_share": _round(self.bandwidth_share),
            "live_share_up": _round(up),
            "live_share_down": _round(down),
            "load_seconds": _round(self.load_seconds),
            "first_token_seconds": _round(self.first_token_seconds),
            "peak_memory_bytes": self.peak_memory,
            "anonymous_memory_bytes": self.anonymous_memory,
        }
        if self.ratio is not None:
            values |= zip(("ratio", "ratio_min", "ratio_max"), map(_round, self.ratio), strict=True)
        return values | dict(self.facts)


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def rates_table(rows: Sequence[Row]) -> Table:
    """Speeds, for people. Columns that no row fills are left out."""
    from rich.table import Table

    columns = (
        ("engine", [row.engine for row in rows]),
        ("test", [row.case.title for row in rows]),
        ("threads", [str(row.case.threads) for row in rows]),
        ("batch", [str(row.case.batch) for row in rows]),
        ("tokens/s", [_number(row.rate) for row in rows]),
        ("min – max", [f"{_number(min(row.samples))} – {_number(max(row.samples))}" for row in rows]),
        ("GB/s", [_number(row.gigabytes_per_second) for row in rows]),
        ("of bandwidth", [_percent(row.bandwidth_share) for row in rows]),
        ("live up / down", [_live(row) for row in rows]),
        ("we are", [_ratio(row) for row in rows]),
    )
    table = Table(box=None, pad_edge=False, header_style="bold")
    filled = [(name, cells) for name, cells in columns if any(cells)]
    for name, _ in filled:
        table.add_column(name, justify="left" if name in ("engine", "test") else "right", no_wrap=True)
    for cells in zip(*(cells for _, cells in filled), strict=True):
        table.add_row(*cells)
    return table


def loads_table(rows: Sequence[Row]) -> Table:
    """Loading times and memory, a line for each number of threads; the peak is that of its last case."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("threads", "load s", "first token s", "peak MB", "without files MB"):
        table.add_column(name, justify="right", no_wrap=True)
    last = {row.case.threads: row for row in rows if row.load_seconds is not None}
    for threads, row in last.items():
        table.add_row(
            str(threads),
            f"{row.load_seconds:.2f}",
            f"{row.first_token_seconds:.2f}",
            _megabytes(row.peak_memory),
            _megabytes(row.anonymous_memory),
        )
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"


def _live(row: Row) -> str:
    return "" if row.live_shares is None else " / ".join(f"{share:.0%}" for share in row.live_shares)


def _ratio(row: Row) -> str:
    if row.ratio is None:
        return ""
    middle, least, most = row.ratio
    return f"{middle:.2f}× ({least:.2f} – {most:.2f})"


def _megabytes(value: int | None) -> str:
    return "unknown" if value is None else f"{value / 1e6:,.0f}"


def require_plot(path: Path) -> None:
    """Refuse before anything is measured.

    Raises:
        ResourceError: matplotlib is not installed.
        InputError: the name does not end in .png, or its folder does not exist.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise ResourceError("--plot needs matplotlib; install the extra `bench`")
    if path.suffix.lower() != ".png":
        raise InputError(f"--plot {path}: the name must end in .png")
    if not path.parent.is_dir():
        raise InputError(f"--plot {path}: {path.parent} is no folder")


def plot(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG: a panel a phase, a bar a row with its spread, and a mark where the bandwidth ends.

    Batches have no mark: what bounds them is arithmetic, and the mark would be far outside.
    """
    from matplotlib.figure import Figure

    phases = [phase for phase in ("pp", "tg") if any(row.case.phase == phase for row in rows)]
    figure = Figure(figsize=(9, 1.4 + 0.42 * len(rows)), layout="constrained")
    heights = [1 + sum(row.case.phase == phase for row in rows) for phase in phases]
    panels = figure.subplots(len(phases), 1, squeeze=False, height_ratios=heights)[:, 0]
    for phase, axes in zip(phases, panels, strict=True):
        shown = [row for row in rows if row.case.phase == phase]
        places = range(len(shown))
        spread = [
            [row.rate - min(row.samples) for row in shown],
            [max(row.samples) - row.rate for row in shown],
        ]
        colors = ["C0" if row.engine == "bitnet" else "C7" for row in shown]
        axes.barh(places, [row.rate for row in shown], xerr=spread, color=colors, capsize=3)
        for place, row in zip(places, shown, strict=True):
            if row.bandwidth and row.step_bytes and row.case.batch == 1:
                ceiling = row.bandwidth * 1e9 / row.step_bytes
                axes.plot([ceiling] * 2, [place - 0.4, place + 0.4], color="C3")
        axes.set_yticks(places, [_bar_name(row) for row in shown])
        axes.invert_yaxis()
        axes.set_xlabel("tokens/s" + ("; red: every weight read once at full bandwidth" * (phase == "tg")))
    facts = rows[0].facts
    figure.suptitle(f"{facts.get('model')} on {facts.get('cpu')} ({facts.get('isa')})", fontsize=10)
    figure.savefig(path, dpi=150)


def _bar_name(row: Row) -> str:
    batch = f", batch {row.case.batch}" if row.case.batch > 1 else ""
    return f"{row.engine} {row.case.title}, {row.case.threads} thr.{batch}"
