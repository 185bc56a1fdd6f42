"""`bitnet convert`: write a model in another format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from bitnet.convert import Conversion


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="A folder, a GGUF file or a Hub id.")],
    destination: Annotated[
        Path, typer.Argument(metavar="DST", help="A folder, or a .gguf file; it must not exist.")
    ],
    to: Annotated[
        Literal["packed", "bf16", "gguf-i2_s", "gguf-tq2_0", "gguf-tq1_0"],
        typer.Option(
            help="packed: safetensors, 2 bits a weight (binary: 1). bf16: safetensors of masters that "
            "quantise to the same codes. gguf-i2_s: for bitnet.cpp. gguf-tq2_0, gguf-tq1_0: for llama.cpp, "
            "2.06 and 1.69 bits a weight."
        ),
    ],
    embedding: Annotated[
        Literal["f16", "q8_0", "q6_k"] | None,
        typer.Option(
            help="How a GGUF file holds the embedding: 16, 8.5 or 6.6 bits a number; the latter two round.",
            show_default="f16",
        ),
    ] = None,
) -> None:
    """Write a model in another format.

    Ternary and binary weights are carried over exactly. Masters (bf16) are quantised where the target holds
    such weights.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from bitnet.convert import convert as write_converted

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"writing {destination}", total=None)
        done = write_converted(
            source,
            destination,
            to,
            embedding,
            progress=lambda bytes_, total: progress.update(task, completed=bytes_, total=total),
        )
    print(describe(done))


def describe(done: Conversion) -> str:
    """The lines that say what was written, and what it cost."""
    if done.quantised:
        weights = f"quantised: the source holds masters, which were rounded to {done.weights} (absmean)"
    else:
        weights = "carried over exactly, nothing was quantised"
    scales = "exact" if done.scale_error == 0 else f"rounded to float16, by up to {done.scale_error:.2%}"
    return "\n".join(
        [
            f"{done.path}: {done.total_bytes:,} bytes, {done.parameters:,} parameters",
            f"bits a weight: {done.ternary_bits:.4g} {done.weights}, {done.overall_bits:.2f} overall",
            f"{done.weights} weights: {weights}",
            f"scales: {scales}",
        ]
    )
