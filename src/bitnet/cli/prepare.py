"""`bitnet prepare`: text to a folder of token shards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bitnet.train.prepare import Summary


def prepare(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="Text with documents separated by lines <|endoftext|>, .jsonl, .parquet, or "
            "hf:NAME[@CONFIG][:SPLIT], a data set of the Hub.",
        ),
    ],
    tokenizer: Annotated[
        Path,
        typer.Option(
            metavar="PATH", help="A tokenizer.json, or the folder of a tokenizer with a chat template."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write; it must not exist.")],
    validation: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of documents for the split `validation`, 0 to 1.")
    ] = 0.0,
    shard_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="About so many tokens a file.")] = 1
    << 27,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the choice of validation documents.")] = 0,
) -> None:
    """Turn text into memory-mapped token shards for training.

    Empty documents are left out. The folder appears when it is complete; docs/data.md describes it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from bitnet.train.documents import Source
    from bitnet.train.prepare import prepare as write_prepared

    sizes = [Source(name).size for name in inputs]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"preparing {out}", total=total)

        def show(summary: Summary) -> None:
            tokens = sum(counts.tokens for counts in summary.splits.values())
            bar.update(task, completed=summary.read, description=f"{tokens:,} tokens")

        summary = write_prepared(inputs, tokenizer, out, validation, shard_tokens, seed, show)
    for split, counts in summary.splits.items():
        print(
            f"{out}: {split}: {counts.documents:,} documents, {counts.tokens:,} tokens, "
            f"{counts.text_bytes:,} bytes of text, {counts.text_bytes / counts.tokens:.2f} bytes a token"
        )
    if summary.empty:
        print(f"{out}: {summary.empty:,} empty documents left out")
