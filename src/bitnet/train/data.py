"""Text files to batches of token ids, each batch a pure function of the configuration and its step.

A file becomes one ring of ids, the separator before every document. A pass cuts the ring into windows of
sequence_length + 1 ids (the targets are the inputs one later), at a new offset each time. Every window gets
a time within its file's share of the run, drawn from the seed; sorted by time they are the run's order. So
a resume needs no reader state, every pass reads every id once, and fewer steps only cut the order short.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from bitnet.errors import FormatError, InputError
from bitnet.train.config import DataSource

SEPARATOR = "<|endoftext|>"
Ids = NDArray[np.uint16] | NDArray[np.uint32]


def read_documents(path: Path) -> list[str]:
    """The documents of a text file, separated by lines that hold nothing but `<|endoftext|>`.

    Raises:
        FormatError: the file is missing, not UTF-8, or empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: not readable as UTF-8 text ({error})") from None
    pieces = f"\n{text}\n".replace("\r\n", "\n").split(f"\n{SEPARATOR}\n")
    documents = [document for piece in pieces if (document := piece.strip("\n"))]
    if not documents:
        raise FormatError(f"{path}: holds no text")
    return documents


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> Ids:
    """All documents as one row of ids, the separator before each; uint16 where the vocabulary allows."""
    separator = tokenizer.token_to_id(SEPARATOR)
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 1 << 16 else np.uint32
    rows = [
        np.array([separator, *encoding.ids], dtype)
        for encoding in tokenizer.encode_batch(list(documents), add_special_tokens=False)
    ]
    return np.concatenate(rows)


class Batches:
    """The run's windows in order; `batch(step)` cuts out one batch.

    Args:
        streams: one row of ids a source, as `encode` gives it.
        sources: passes and until of each.
        length: sequence_length.
        seed: of offsets and order.
    Raises:
        InputError: a stream is shorter than one window.
    """

    def __init__(self, streams: Sequence[Ids], sources: Sequence[DataSource], length: int, seed: int) -> None:
        self._streams, self._length = streams, length
        generator = np.random.default_rng(seed)
        times, files, starts = [], [], []
        for index, (stream, source) in enumerate(zip(streams, sources, strict=True)):
            if len(stream) <= length:
                raise InputError(
                    f"data {source.path}: {len(stream)} tokens do not fill one sequence of {length}; "
                    "give more text or a smaller sequence_length"
                )
            for first in range(int(np.ceil(source.passes))):
                share = min(1.0, source.passes - first)
                start, time = self._one_pass(generator, len(stream), share)
                starts.append(start)
                times.append((first + share * time) / source.passes * source.until)
                files.append(np.full(len(start), index))
        order = np.argsort(np.concatenate(times), kind="stable")
        self._files = np.concatenate(files)[order]
        self._starts = np.concatenate(starts)[order]

    def _one_pass(
        self, generator: np.random.Generator, tokens: int, share: float
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Starts and times in 0..1 of one pass over `share` of a ring of `tokens` ids."""
        windows = tokens // self._length
        offset = generator.integers(tokens)
        chosen = generator.permutation(windows)[: max(1, round(share * windows))]
        return (offset + chosen * self._length) % tokens, generator.random(len(chosen))

    def __len__(self) -> int:
        """Windows of all passes together."""
        return len(self._starts)

    def batch(self, step: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Inputs and targets of step `step`, int64 (size, length); beyond the last pass it starts again."""
        inside = np.arange(self._length + 1)
        rows = []
        for number in range(step * size, (step + 1) * size):
            position = number % len(self)
            stream = self._streams[self._files[position]]
            rows.append(stream[(self._starts[position] + inside) % len(stream)])
        ids = np.stack(rows).astype(np.int64)
        return ids[:, :-1], ids[:, 1:]
