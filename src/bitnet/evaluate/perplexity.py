"""Perplexity of texts, in rolling windows as lm-evaluation-harness lays them.

Each document stands alone, behind the model's beginning-of-text token. Its ids are predicted in windows of
the model's context: the first window predicts as many as fit, each later one as many behind the last id
of the one before, and the last window is moved back so that it is full, while only its new ids count.

    token perplexity = exp(nats / tokens)    word perplexity = exp(nats / words), words between white space
    byte perplexity  = exp(nats / bytes)     bits per byte   = nats / ln 2 / bytes

Bits per byte is a ratio R = Σ b_i / Σ s_i over n documents; its standard error is that of a ratio estimator,
√(n / (n - 1) Σ (b_i - R s_i)²) / Σ s_i.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bitnet.errors import FormatError, InputError
from bitnet.evaluate.rows import read_rows, read_text
from bitnet.evaluate.scoring import Progress, prefix_token, score_ids
from bitnet.generate.model import Model

_SEPARATOR = re.compile(r"^<\|endoftext\|>[ \t\r]*(?:\n|\Z)", re.MULTILINE)
_ROWS = (".jsonl", ".ndjson", ".zip")


@dataclass(frozen=True)
class DocumentScore:
    """One document: its negative log-likelihood in nats, and what that is counted over."""

    nats: float
    tokens: int
    words: int
    bytes: int


@dataclass(frozen=True)
class PerplexityResult:
    """What all documents come to; the formulas stand at the top of this file."""

    documents: tuple[DocumentScore, ...]

    @property
    def nats(self) -> float:
        return sum(document.nats for document in self.documents)

    @property
    def tokens(self) -> int:
        return sum(document.tokens for document in self.documents)

    @property
    def words(self) -> int:
        return sum(document.words for document in self.documents)

    @property
    def bytes(self) -> int:
        return sum(document.bytes for document in self.documents)

    @property
    def token_perplexity(self) -> float:
        return _exp(self.nats / self.tokens)

    @property
    def word_perplexity(self) -> float:
        return _exp(self.nats / self.words)

    @property
    def byte_perplexity(self) -> float:
        return _exp(self.nats / self.bytes)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.bytes

    @property
    def bits_per_byte_stderr(self) -> float | None:
        """None for a single document."""
        count = len(self.documents)
        if count < 2:
            return None
        rest = [one.nats / math.log(2) - self.bits_per_byte * one.bytes for one in self.documents]
        return math.sqrt(count / (count - 1) * math.fsum(r * r for r in rest)) / self.bytes


def read_documents(path: Path, limit: int | None = None) -> list[str]:
    """The first `limit` documents of a file that are not empty.

    JSON lines hold one a line under `text`; any other file is text, in which lines `<|endoftext|>` may
    separate documents.

    Raises:
        FormatError: the file is damaged or holds no text.
    """
    if any(suffix in path.suffixes[-2:] for suffix in _ROWS):
        found = [row.text("text", empty=True) for rows in read_rows(path) for row in rows]
    else:
        found = _SEPARATOR.split(read_text(path))
    documents = [text for text in found if text.strip()]
    if not documents:
        raise FormatError(f"{path}: holds no text")
    return documents[:limit]


def measure_perplexity(
    model: Model,
    documents: Sequence[str],
    batch_size: int = 16,
    progress: Progress | None = None,
) -> PerplexityResult:
    """Score documents; `progress` is called with the number of windows done and that of all.

    Raises:
        InputError: the model has no tokenizer, or a document is empty.
    """
    scores = rolling_scores(model, documents, batch_size, progress)
    return PerplexityResult(
        tuple(
            DocumentScore(nats, tokens, len(re.split(r"\s+", text)), len(text.encode()))
            for text, (nats, tokens) in zip(documents, scores, strict=True)
        )
    )


def rolling_scores(
    model: Model, texts: Sequence[str], batch_size: int = 16, progress: Progress | None = None
) -> list[tuple[float, int]]:
    """Each text's negative log-likelihood in nats, and its number of tokens; the rest as above."""
    if model.tokenizer is None:
        raise InputError("the model has no tokenizer.json, so it cannot read a text")
    prefix = prefix_token(model)
    windows: list[tuple[list[int], list[int]]] = []
    sizes, ends = [], []
    for number, text in enumerate(texts):
        ids = model.tokenizer.encode(text, add_bos=False)
        if not ids:
            raise InputError(f"document {number} is empty")
        windows += rolling_windows(ids, prefix, model.config.max_position_embeddings)
        sizes.append(len(ids))
        ends.append(len(windows))
    scores = score_ids(model, windows, batch_size=batch_size, progress=progress)
    starts = [0, *ends]
    return [
        (-math.fsum(one.log_likelihood for one in scores[start:end]), size)
        for start, end, size in zip(starts, ends, sizes, strict=False)
    ]


def rolling_windows(ids: Sequence[int], prefix: int, length: int) -> Iterator[tuple[list[int], list[int]]]:
    """(context, continuation) pairs whose continuations make up `ids`; together `length` + 1 ids at most."""
    behind = [prefix, *ids]  # behind[i] stands before ids[i]
    for start in range(0, len(ids), length):
        end = min(start + length, len(ids))
        first = max(0, end - length) if start else 0
        yield behind[first : start + 1], list(ids[start:end])


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf  # e^710 is beyond float64
