"""Held-out quality in bits per byte: comparable between vocabularies, unlike loss a token.

bits per byte = Σ -log2 p(token) / bytes of the documents. Every document's end counts among the tokens and
not among the bytes. Windows do not overlap, so each token sees half a window before it on average.

The model in training is measured, and what will be shipped: its packed form on the CPU engine.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.nn import functional as F

from bitnet.config import ModelConfig
from bitnet.cpu_model import CpuModel
from bitnet.errors import FormatError
from bitnet.formats.checkpoint import Checkpoint
from bitnet.nn import Transformer
from bitnet.train.export import checkpoint_tensors
from bitnet.train.shards import Corpus
from bitnet.train.sources import open_source

_WINDOWS, _LOGITS = 8, 1 << 26  # most windows and, beyond one window, logits (256 MB) of a forward pass


@dataclass(frozen=True)
class HeldOut:
    """A held-out text.

    Attributes:
        name: what its column is called.
        ids: int64, a separator before each document and at the end.
        size: bytes of the documents.
    """

    name: str
    ids: NDArray[np.int64]
    size: int

    @classmethod
    def of(cls, name: str, corpus: Corpus) -> HeldOut:
        """All of a corpus, closed by the separator it begins with.

        Raises:
            FormatError: its documents hold no byte, so there is nothing to divide by.
        """
        if corpus.text_bytes == 0:
            raise FormatError(f"{corpus.name}: holds no text to evaluate on")
        return cls(name, corpus.take(0, len(corpus) + 1), corpus.text_bytes)

    def batches(self, length: int, vocab_size: int) -> Iterator[NDArray[np.int64]]:
        """Windows of `length` + 1 ids, (up to 8, length + 1); the short last window rides alone.

        Fewer than 8 where their logits would take more memory than an evaluation should.
        """
        whole = (len(self.ids) - 1) // length
        together = max(1, min(_WINDOWS, _LOGITS // (length * vocab_size)))
        for first in range(0, whole, together):
            starts = range(first, min(first + together, whole))
            yield np.stack([self.ids[start * length : (start + 1) * length + 1] for start in starts])
        if whole * length < len(self.ids) - 1:
            yield self.ids[None, whole * length :]

    def bits(self, nats: float) -> float:
        """Bits per byte of a loss summed over all its tokens."""
        return nats / math.log(2) / self.size


def open_texts(paths: Sequence[str], tokenizer: Tokenizer, chat_template: str | None = None) -> list[HeldOut]:
    """The validation splits of prepared folders, and texts.

    Each is called by the shortest of `story`, `story.txt`, `folder/story.txt`, … that is no other's too.

    Raises:
        FormatError, InputError: as `open_source`.
    """
    different = [Path(path) for path in dict.fromkeys(paths)]
    return [
        HeldOut.of(name, open_source(path, tokenizer, "validation", chat_template=chat_template))
        for name, path in zip(_names(different), different, strict=True)
    ]


def _names(paths: Sequence[Path]) -> list[str]:
    names = [
        [path.stem, *("/".join(path.parts[-n:]) for n in range(1, len(path.parts) + 1))] for path in paths
    ]
    taken = Counter(name for candidates in names for name in set(candidates))
    return [next((name for name in own if taken[name] == 1), own[-1]) for own in names]


def bits_per_byte(model: Transformer, text: HeldOut, length: int) -> float:
    """Run the model in training over the whole text in windows of `length` tokens."""
    nats = 0.0
    device = model.head_weight.device
    with torch.no_grad():  # inference mode would refuse the gathers of sharded parameters
        for windows in text.batches(length, model.config.vocab_size):
            ids = torch.from_numpy(windows).to(device)
            logits = model(ids[:, :-1]).float().flatten(0, 1)
            nats += F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum").item()
    return text.bits(nats)


def packed_model(tensors: Mapping[str, torch.Tensor], config: ModelConfig) -> CpuModel:
    """The CPU engine on the packed form of float32 masters, as an export of them would run."""
    packed = config.with_quantization("offline")
    checkpoint = Checkpoint(
        packed, checkpoint_tensors(tensors, packed), "the packed model", None, frozenset()
    )
    return CpuModel.from_checkpoint(checkpoint, None, head="full")


def packed_bits_per_byte(model: CpuModel, text: HeldOut, length: int) -> float:
    """The same measure on the CPU engine."""
    nats = 0.0
    for windows in text.batches(length, model.config.vocab_size):
        batch = [(model.new_cache(len(window) - 1), window[:-1].tolist()) for window in windows]
        for window, logits in zip(windows, model.forward(batch, all_logits=True), strict=True):
            logits -= logits.max(axis=-1, keepdims=True)  # in place: they may be a gigabyte
            chosen = logits[np.arange(len(logits)), window[1:]].astype(np.float64)
            np.exp(logits, out=logits)
            nats += float((np.log(logits.sum(axis=-1, dtype=np.float64)) - chosen).sum())
    return text.bits(nats)
