"""Two stages against one against `nn.Linear` at equal tokens: runs, figures, table (docs/schedules.md).

    python benchmarks/schedules/compare.py --data DATA --heldout DATA --tokenizer TOKENIZER --out RUNS

A variant is `base.yaml` and a few overrides. Finished runs are kept and broken ones resumed, so that the same
command goes on where it was interrupted.
"""

from __future__ import annotations

import csv
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

SINGLE = ["schedule.learning_rate.recipe=linear", "schedule.weight_decay.recipe=constant"]
VARIANTS = {
    "two-stage": [],
    "single-stage": SINGLE,
    # each kind of layer at the best of 2, 4 and 8e-3 in runs of 700,000 tokens
    "fp32 nn.Linear": [*SINGLE, "schedule.quantized=false", "schedule.learning_rate.peak=8e-3"],
}
BASE = Path(__file__).with_name("base.yaml")


def main(
    data: Annotated[str, typer.Option(help="A prepared folder.")],
    heldout: Annotated[list[str], typer.Option(help="Folders or texts to evaluate on.")],
    tokenizer: Annotated[Path, typer.Option(help="The tokenizer.json of the folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs.")],
    seeds: Annotated[int, typer.Option(help="Runs a variant, seeds 0, 1, …")] = 2,
    passes: Annotated[
        float, typer.Option(help="Of the data; its order, not its amount, depends on it.")
    ] = 1.0,
    threads: Annotated[int, typer.Option(help="CPU threads a run.")] = 1,
    figures: Annotated[Path, typer.Option(help="Where the PNGs go.")] = Path("docs"),
) -> None:
    """Train every variant with every seed, then draw and print the comparison."""
    source = json.dumps([{"path": data, "passes": passes}])
    for seed in range(seeds):
        for name, changes in VARIANTS.items():
            folder = out / f"{name}-{seed}"
            if (folder / "finished").exists():
                continue
            command = [
                sys.executable,
                "-m",
                "bitnet",
                "train",
                "--out",
                str(folder),
                "--threads",
                str(threads),
            ]
            if (folder / "training.yaml").exists():
                command.append("--resume")
            else:
                settings = [
                    f"data.sources={source}",
                    f"data.heldout={json.dumps(heldout)}",
                    f"seed={seed}",
                    *changes,
                ]
                command += [str(BASE), "--tokenizer", str(tokenizer)]
                command += [part for setting in settings for part in ("--set", setting)]
            subprocess.run(command, check=True)
            (folder / "finished").touch()
    runs = {
        name: [read(out / f"{name}-{seed}" / "metrics.csv") for seed in range(seeds)] for name in VARIANTS
    }
    draw_losses(runs, figures / "schedules-loss.png")
    draw_codes(out, figures / "schedules-codes.png")
    print(table(runs))


def read(path: Path) -> list[dict[str, str]]:
    """The rows of one metrics file."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def series(rows: list[dict[str, str]], column: str) -> tuple[list[float], list[float]]:
    """Millions of tokens, and the column, where it has a value."""
    kept = [row for row in rows if row[column]]
    return [float(row["tokens"]) / 1e6 for row in kept], [float(row[column]) for row in kept]


def heldout_columns(rows: list[dict[str, str]]) -> list[str]:
    """Names of the bits-per-byte columns."""
    return [column for column in rows[0] if column.startswith("heldout:")]


def draw_losses(runs: dict[str, list[list[dict[str, str]]]], path: Path) -> None:
    """Held-out bits per byte over tokens, a colour a variant and a line a seed; the end again, enlarged."""
    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    whole, end = figure.subplots(1, 2)
    column = heldout_columns(next(iter(runs.values()))[0])[0]
    for number, (name, seeds) in enumerate(runs.items()):
        for seed, rows in enumerate(seeds):
            tokens, bits = series(rows, column)
            for axes in (whole, end):
                axes.plot(tokens, bits, color=f"C{number}", linewidth=1.2, label=None if seed else name)
    finals = [series(rows, column)[1] for seeds in runs.values() for rows in seeds]
    last = max(tokens for tokens in series(next(iter(runs.values()))[0], column)[0])
    end.set(
        xlim=(0.4 * last, last), ylim=(min(f[-1] for f in finals) - 0.02, max(f[len(f) // 2] for f in finals))
    )
    for axes in (whole, end):
        axes.set(xlabel="million tokens", ylabel="held-out bits per byte")
        axes.axvline(last / 2, color="0.4", linewidth=0.8, linestyle=":")
        axes.grid(alpha=0.3)
    whole.legend(fontsize="small")
    figure.savefig(path)


def draw_codes(out: Path, path: Path) -> None:
    """Zero fraction and flip rate of every layer over tokens, with and without the drop; seed 0."""
    figure = Figure(figsize=(10, 6.4), dpi=80, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for place, name in enumerate(("two-stage", "single-stage")):
        rows = read(out / f"{name}-0" / "codes.csv")
        for layer in dict.fromkeys(row["layer"] for row in rows):
            draw_layer(panels[:, place], layer, [row for row in rows if row["layer"] == layer])
        panels[0, place].set_title(name)
        panels[1, place].set_xlabel("step")
    panels[0, 0].set_ylabel("share of zero codes")
    panels[1, 0].set_ylabel("codes flipped since the last point")
    panels[0, 1].legend(
        handles=[panels[0, 1].plot([], [], color=f"C{n}", label=kind)[0] for n, kind in enumerate(KINDS)],
        fontsize="small",
    )
    figure.savefig(path)


KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def draw_layer(panels: list[Axes], layer: str, rows: list[dict[str, str]]) -> None:
    """One layer's two lines; the colour says which projection it is."""
    color = f"C{KINDS.index(layer.rsplit('.', 1)[-1])}"
    for axes, column in zip(panels, ("zero_fraction", "flip_rate"), strict=True):
        kept = [row for row in rows if row[column] not in ("", "nan")]
        axes.plot(
            [int(row["step"]) for row in kept],
            [float(row[column]) for row in kept],
            color=color,
            linewidth=0.9,
        )


def table(runs: dict[str, list[list[dict[str, str]]]]) -> str:
    """Final bits per byte in Markdown: every seed, and their mean."""
    columns = heldout_columns(next(iter(runs.values()))[0])
    lines = ["| variant | " + " | ".join(column.removeprefix("heldout:") for column in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, seeds in runs.items():
        cells = []
        for column in columns:
            finals = [series(rows, column)[1][-1] for rows in seeds]
            cells.append(f"{statistics.mean(finals):.4f} ({', '.join(f'{value:.4f}' for value in finals)})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
