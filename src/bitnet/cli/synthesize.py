"""`bitnet synthesize`: write a random checkpoint of a preset's exact layout, for benchmarks and tests."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def synthesize(
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write; it must not exist.")],
    preset: Annotated[str, typer.Option(help="The shape: 2b4t (1.2 GB) or stories (4 MB).")] = "2b4t",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    mode: Annotated[
        Literal["offline", "online"],
        typer.Option(help="offline: packed 2-bit weights; online: bf16 masters (4 times the size)."),
    ] = "offline",
    dead_neurons: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Share of feed-forward neurons that relu² silences, 0 to 1, such as 0.75 "
            "(default: a half, as random weights have it).",
        ),
    ] = None,
) -> None:
    """Write a random checkpoint of a preset's exact layout.

    Its text is noise, but its size, speed and memory are those of the real model.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from bitnet.config import preset as find_preset
    from bitnet.formats.synthesize import synthesize as write_random
    from bitnet.formats.tensor_names import count_parameters

    config = find_preset(preset).with_quantization(mode)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"writing {out}", total=None)
        write_random(
            config,
            out,
            seed,
            mode,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            dead_neurons=dead_neurons,
        )
    written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print(f"{out}: {written:,} bytes of weights, {count_parameters(config):,} parameters")
