"""`bitnet tokenizer train`: a byte-level BPE vocabulary for your own text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from bitnet.errors import InputError

tokenizer = typer.Typer(help="Make a tokenizer.", no_args_is_help=True)


@tokenizer.callback()
def _group() -> None:
    """Make a tokenizer."""


@tokenizer.command()
def train(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT", help="As for bitnet prepare; conversations count as text."),
    ],
    vocab_size: Annotated[
        int, typer.Option(metavar="N", help="Vocabulary entries: 256 bytes, <|endoftext|>, and merges.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write tokenizer.json into.")],
    split: Annotated[
        Literal["gpt2", "llama3"],
        typer.Option(help="How text is cut into pieces first; llama3 has numbers of at most three digits."),
    ] = "gpt2",
) -> None:
    """Learn a byte-level BPE vocabulary from text."""
    from rich.console import Console

    from bitnet.train.documents import Source, texts
    from bitnet.train.tokenizer import learn_tokenizer, save_tokenizer

    if (out / "tokenizer.json").exists():
        raise InputError(f"{out}: holds a tokenizer.json already; choose another folder")
    readers = [Source(name).documents() for name in inputs]
    counts = {"documents": 0, "bytes": 0}

    def read() -> Iterator[str]:
        for reader in readers:
            for document in reader:
                counts["documents"] += 1
                for text in texts(document):
                    counts["bytes"] += len(text.encode())
                    yield text

    with Console(stderr=True).status("learning a vocabulary"):
        learned = learn_tokenizer(read(), vocab_size, split)
    save_tokenizer(learned, out)
    print(
        f"{out}: {learned.get_vocab_size():,} entries from {counts['documents']:,} documents, "
        f"{counts['bytes']:,} bytes"
    )
