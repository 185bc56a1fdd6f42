"""Held-out quality in bits per byte: comparable between vocabularies, unlike loss a token.

bits per byte = Σ -log2 p(token) / bytes of the documents. Every document's end counts among the tokens and
not among the bytes. Windows do not overlap, so each token sees half a window before it on average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn import functional as F

from bitnet.nn import Transformer
from bitnet.train.data import SEPARATOR, Ids, encode, read_documents


@dataclass(frozen=True)
class HeldOut:
    """A held-out text: ids with a separator before each document and at the end, size in bytes."""

    name: str
    ids: Ids
    size: int

    @classmethod
    def read(cls, path: Path, tokenizer: Tokenizer) -> HeldOut:
        """Raises FormatError: the file is missing or holds no text."""
        documents = read_documents(path)
        ids = encode(tokenizer, documents)
        ids = np.append(ids, np.array(tokenizer.token_to_id(SEPARATOR), ids.dtype))
        return cls(path.stem, ids, sum(len(document.encode()) for document in documents))


def bits_per_byte(model: Transformer, text: HeldOut, length: int, batch_size: int = 8) -> float:
    """Run the model over the whole text in windows of `length` tokens."""
    nats = 0.0
    ids = torch.from_numpy(text.ids.astype(np.int64))
    starts = list(range(0, len(ids) - 1, length))
    with torch.inference_mode():
        for rows in _batches(starts, len(ids) - 1, length, batch_size):
            window = torch.stack([ids[start : start + size + 1] for start, size in rows])
            logits = model(window[:, :-1]).float().flatten(0, 1)
            nats += F.cross_entropy(logits, window[:, 1:].flatten(), reduction="sum").item()
    return nats / math.log(2) / text.size


def _batches(starts: Sequence[int], end: int, length: int, size: int) -> list[list[tuple[int, int]]]:
    """Windows (start, length) in batches of equal length; the short last window rides alone."""
    windows = [(start, min(length, end - start)) for start in starts]
    whole = [window for window in windows if window[1] == length]
    batches = [whole[first : first + size] for first in range(0, len(whole), size)]
    return batches + [[window] for window in windows if window[1] != length]
