"""How much of what a model tells was copied: word 13-grams of its samples that stand in the training texts.

    python benchmarks/memorisation.py --training tinystories.txt --training books.txt --heldout heldout.txt

Words are compared without case and punctuation; no run of words reaches from one document into the next. A
run is known by a 64-bit hash, so that tens of millions of words fit into memory. Held-out texts show what the
training texts share with others of their kind.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bitnet import SamplingParams, generate, load_model
from bitnet.train.documents import Source

Hashes = NDArray[np.uint64]
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd, so that no word of a run is lost modulo 2^64
_STDERR = Console(stderr=True)


@dataclass(frozen=True)
class Overlap:
    """What a text shares with the training texts.

    Attributes:
        documents: texts that were compared.
        runs: n-grams in them, repeated ones too.
        copied: how many of these stand in the training texts.
        longest: words of the longest passage of which every n-gram stands there.
    """

    documents: int
    runs: int
    copied: int
    longest: int

    @property
    def share(self) -> float:
        """Copied n-grams of all, 0..1."""
        return self.copied / self.runs if self.runs else 0.0


def main(
    training: Annotated[list[Path], typer.Option(help="A text the model was trained on; may be repeated.")],
    heldout: Annotated[list[Path], typer.Option(help="A text it was not; may be repeated.")] = [],  # noqa: B006
    model: Annotated[str | None, typer.Option("-m", help="A folder, a GGUF file or a Hub id.")] = None,
    prompt: Annotated[
        str, typer.Option(help="Begins each sample and counts as its part.")
    ] = "Once upon a time",
    samples: Annotated[int, typer.Option(help="How many, with seeds 0, 1, …")] = 100,
    max_tokens: Annotated[int, typer.Option(help="Of each, unless it ends before.")] = 200,
    temperature: Annotated[float, typer.Option(help="Of the sampling.")] = 0.7,
    n: Annotated[int, typer.Option(help="Words of a run.")] = 13,
    threads: Annotated[int | None, typer.Option("-t", help="CPU threads.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Sample, count and print the shares."""
    stories = list(tell(model, prompt, samples, max_tokens, temperature, threads))
    known = np.unique(np.concatenate([run for path in training for run in runs_of_file(path, n)]))
    if not len(known):
        raise typer.BadParameter(f"no document of the training texts has {n} words")
    results = {"samples": compare((runs_of(story, n) for story in stories), known, n)}
    for path in heldout:
        results[path.name] = compare(runs_of_file(path, n), known, n)
    if as_json:
        print(json.dumps({name: asdict(found) | {"share": found.share} for name, found in results.items()}))
        return
    table = Table("text", "documents", f"{n}-grams", "copied", "share", "longest passage")
    for name, result in results.items():
        counts = (result.documents, result.runs, result.copied)
        table.add_row(name, *(f"{c:,}" for c in counts), f"{result.share:.2%}", f"{result.longest} words")
    Console().print(table)


def tell(
    model: str | None, prompt: str, samples: int, max_tokens: int, temperature: float, threads: int | None
) -> Iterator[str]:
    """The samples, each with its prompt, as `bitnet generate --seed N` prints them."""
    loaded = load_model(model, engine="cpu", threads=threads)
    for seed in track(range(samples), "samples", console=_STDERR):
        params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
        yield prompt + generate(loaded, prompt, params).text


def runs_of(text: str, n: int) -> Hashes:
    """The hash of every run of n words, in order: sum of multiplier^i · hash(word i), modulo 2^64."""
    found = _WORD.findall(text.lower().replace("’", "'"))
    hashes = np.fromiter((hash(word) & 0xFFFF_FFFF_FFFF_FFFF for word in found), np.uint64, len(found))
    count = max(len(found) - n + 1, 0)
    runs = np.zeros(count, np.uint64)
    for place in range(n):
        runs *= np.uint64(_MULTIPLIER)
        runs += hashes[place : place + count]
    return runs


def runs_of_file(path: Path, n: int) -> Iterator[Hashes]:
    """Of each document."""
    for document in Source(str(path)).documents():
        texts = [document] if isinstance(document, str) else [message["content"] for message in document]
        yield from (runs_of(text, n) for text in texts)


def compare(texts: Iterable[Hashes], known: Hashes, n: int) -> Overlap:
    """Count the runs of the texts that are among the known ones, which are sorted."""
    documents = total = copied = longest = 0
    for runs in texts:
        places = np.minimum(np.searchsorted(known, runs), len(known) - 1)
        hits = known[places] == runs
        edges = np.flatnonzero(np.diff(np.concatenate([[False], hits, [False]])))
        stretch = int((edges[1::2] - edges[::2]).max(initial=0))
        longest = max(longest, stretch + n - 1 if stretch else 0)
        documents, total, copied = documents + 1, total + len(runs), copied + int(hits.sum())
    return Overlap(documents, total, copied, longest)


if __name__ == "__main__":
    typer.run(main)
