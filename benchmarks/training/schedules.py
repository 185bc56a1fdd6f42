"""Two stages against one against `nn.Linear` at equal tokens: runs, figures, table (docs/schedules.md).

    python benchmarks/training/schedules.py --data DATA --heldout DATA --tokenizer TOKENIZER --out RUNS

A variant is `base.yaml` and a few overrides. Finished runs are kept and broken ones resumed, so that the same
command goes on where it was interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from runs import (
    FLOAT32,
    SINGLE_STAGE,
    Runs,
    Texts,
    draw_heldout,
    finals,
    heldout_columns,
    read,
    read_runs,
    series,
    train,
)

LOUD = "branch_norm=1.0"  # these runs are from before it had another default
VARIANTS: dict[str, list[str]] = {
    "two-stage": [LOUD],
    "single-stage": [*SINGLE_STAGE, LOUD],
    "fp32 nn.Linear": [*FLOAT32, LOUD],
}


def main(
    data: Annotated[str, typer.Option(help="A prepared folder.")],
    heldout: Annotated[list[str], typer.Option(help="Folders or texts to evaluate on.")],
    tokenizer: Annotated[Path, typer.Option(help="The tokenizer.json of the folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs.")],
    seeds: Annotated[int, typer.Option(help="Runs a variant, seeds 0, 1, …")] = 2,
    threads: Annotated[int, typer.Option(help="CPU threads a run.")] = 1,
    figures: Annotated[Path, typer.Option(help="Where the PNGs go.")] = Path("docs"),
) -> None:
    """Train every variant with every seed, then draw and print the comparison."""
    texts = Texts(data, heldout, tokenizer)
    for seed in range(seeds):
        for name, changes in VARIANTS.items():
            train(out / f"{name}-{seed}", texts, seed, changes, threads)
    runs = read_runs(out, dict.fromkeys(VARIANTS, seeds))
    draw_losses(runs, figures / "schedules-loss.png")
    draw_codes(out, figures / "schedules-codes.png")
    print(table(runs))


def draw_losses(runs: Runs, path: Path) -> None:
    """Held-out bits per byte over tokens; the end again, enlarged."""
    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    whole, end = figure.subplots(1, 2)
    column = heldout_columns(next(iter(runs.values()))[0])[0]
    lines = [series(rows, column) for seeds in runs.values() for rows in seeds]
    last = lines[0][0][-1]
    end.set(
        xlim=(0.4 * last, last),
        ylim=(min(bits[-1] for _, bits in lines) - 0.02, max(bits[len(bits) // 2] for _, bits in lines)),
    )
    for axes in (whole, end):
        draw_heldout(axes, runs)
        axes.axvline(last / 2, color="0.4", linewidth=0.8, linestyle=":")
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


def table(runs: Runs) -> str:
    """Final bits per byte in Markdown: every seed, and their mean."""
    columns = heldout_columns(next(iter(runs.values()))[0])
    lines = ["| variant | " + " | ".join(column.removeprefix("heldout:") for column in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, seeds in runs.items():
        lines.append(f"| {name} | " + " | ".join(finals(seeds, column) for column in columns) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    typer.run(main)
