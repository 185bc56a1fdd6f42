"""Every member of the line at equal tokens, half of base.yaml's: runs, figure, table (docs/variants.md).

    python benchmarks/training/variants.py --data DATA --heldout TEXT --tokenizer TOKENIZER --out RUNS

What is exported is loaded again and measured on the CPU engine, beside what the trainer measured. Finished
runs are kept and broken ones resumed; `--only` trains some now and the others later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from matplotlib.figure import Figure
from runs import FLOAT32, SINGLE_STAGE, Texts, draw_heldout, finals, heldout_columns, read_runs, series, train

from bitnet import load_model
from bitnet.cpu_model import CpuModel
from bitnet.train.config import CONFIG_FILE, TrainingConfig
from bitnet.train.heldout import open_texts, packed_bits_per_byte
from bitnet.train.tokenizer import load_tokenizer

TWO_STAGES = "schedule.low_bit_from=0.95"  # 95 B tokens with int8 inputs, 5 B with fewer bits (2411.04965)
INT4 = 'model.quantization_config.inputs={"qkv": "int4", "o": "int4", "gate_up": "int4", "down": "int4"}'


HORIZON = "schedule.horizon=1250000"


def variant(name: str, *more: str) -> list[str]:
    """Settings of a named variant."""
    return [*SINGLE_STAGE, HORIZON, f"model.variant={name}", *more]


# settings, and how many seeds
VARIANTS: dict[str, tuple[list[str], int]] = {
    "fp32": ([*FLOAT32, HORIZON], 2),
    "b1.58": (variant("b1.58"), 2),
    "w1a8": (variant("w1a8"), 2),
    "a4.8": (variant("a4.8", TWO_STAGES), 2),
    "v2": (variant("v2", TWO_STAGES), 2),
    "a4.8-fp4": (variant("a4.8-fp4", TWO_STAGES), 1),
    "v2-a8": (variant("v2-a8"), 1),
    "int4 without rotation": (variant("b1.58", INT4, TWO_STAGES), 1),
    "tips": (variant("tips"), 1),
    "pre": (variant("pre"), 1),
    "w1a1": (variant("w1a1"), 1),
}


def main(
    data: Annotated[str, typer.Option(help="A prepared folder.")],
    heldout: Annotated[list[str], typer.Option(help="Folders or texts to evaluate on.")],
    tokenizer: Annotated[Path, typer.Option(help="The tokenizer.json of the folder.")],
    out: Annotated[Path, typer.Option(help="Folder of the runs.")],
    only: Annotated[list[str] | None, typer.Option(help="NAME-SEED of a run; may be repeated.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads a run.")] = 1,
    figures: Annotated[Path, typer.Option(help="Where the PNG goes.")] = Path("docs"),
) -> None:
    """Train, then draw and print the comparison; with --only, train."""
    texts = Texts(data, heldout, tokenizer)
    for seed in range(max(seeds for _, seeds in VARIANTS.values())):
        for name, (settings, seeds) in VARIANTS.items():
            if seed < seeds and (not only or f"{name}-{seed}" in only):
                train(out / f"{name}-{seed}", texts, seed, settings, threads)
    if only:
        return
    seeds_of = {name: seeds for name, (_, seeds) in VARIANTS.items()}
    runs = read_runs(out, seeds_of)
    figure = Figure(figsize=(8, 4.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    draw_heldout(axes, runs)
    axes.set(ylim=(1.1, 2.0))
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(figures / "variants-loss.png")
    column = heldout_columns(next(iter(runs.values()))[0])[0]
    print("| variant | held-out bits per byte | exported, CPU engine | difference |\n|---|---|---|---|")
    for name, seeds in runs.items():
        measured = series(seeds[0], column)[1][-1]
        folder = out / f"{name}-0"
        cells = ["", ""]
        if (folder / "model-packed").exists():
            packed = packed_bits(folder)
            cells = [f"{packed:.4f}", f"{packed / measured - 1:+.3%}"]
        print(f"| {name} | {finals(seeds, column)} | {' | '.join(cells)} |")


def packed_bits(folder: Path) -> float:
    """Bits per byte of a run's exported model on the first held-out text."""
    config = TrainingConfig.load(folder / CONFIG_FILE)
    (text, *_) = open_texts(config.data.heldout, load_tokenizer(folder / "tokenizer"))
    model = load_model(folder / "model-packed")
    assert isinstance(model, CpuModel)
    return packed_bits_per_byte(model, text, config.data.sequence_length)


if __name__ == "__main__":
    typer.run(main)
