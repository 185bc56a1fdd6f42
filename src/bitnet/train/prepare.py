"""Text to a prepared folder (docs/data.md), in one pass and bounded memory.

Whether a document is for validation is decided by a hash of the seed and its content: so neither the order of
the inputs nor their division into files matters, and copies of a document all fall on one side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bitnet.errors import FormatError, InputError
from bitnet.train.documents import Document, Source, texts
from bitnet.train.encoding import Encoder, in_batches
from bitnet.train.shard_writer import DEFAULT_SHARD_TOKENS, ShardWriter
from bitnet.train.tokenizer import load_tokenizer, tokenizer_file


@dataclass
class SplitSummary:
    """What went into a split."""

    documents: int = 0
    tokens: int = 0
    text_bytes: int = 0


@dataclass
class Summary:
    """What was prepared so far.

    Attributes:
        read: bytes of the input files.
        empty: documents without text, which were left out.
    """

    splits: dict[str, SplitSummary] = field(default_factory=lambda: {"train": SplitSummary()})
    read: int = 0
    empty: int = 0


def prepare(
    inputs: Sequence[str],
    tokenizer: Path,
    folder: Path,
    validation: float = 0.0,
    shard_tokens: int = DEFAULT_SHARD_TOKENS,
    seed: int = 0,
    progress: Callable[[Summary], None] | None = None,
) -> Summary:
    """Write the documents of all inputs as a prepared folder.

    Args:
        inputs: what `Source` reads.
        tokenizer: a tokenizer.json or its folder; conversations need the chat template beside it.
        folder: must not exist.
        validation: the share (0..1) of documents in the split `validation`; 0 makes none.
        shard_tokens: about so many tokens a file.
        seed: of the choice of validation documents.
        progress: is called after every batch.
    Raises:
        FormatError: an input or the tokenizer is missing or damaged, or there is no text.
        UnsupportedError: a kind of file that is not read.
        InputError: a value out of range, a folder that exists, a split that got no document.
        ResourceError: the disk is full, or a package is missing.
    """
    if not 0 <= validation < 1:
        raise InputError(f"validation is {validation}; it must be a share from 0 to below 1")
    core = load_tokenizer(tokenizer)
    file = tokenizer_file(tokenizer)
    encoder = Encoder(core, file.parent if file.name == "tokenizer.json" else None)
    sources = [Source(name) for name in inputs]
    documents = [source.documents() for source in sources]  # a wrong name is an error before any work
    summary = Summary()
    if validation:
        summary.splits["validation"] = SplitSummary()
    with ShardWriter(
        folder, file.read_bytes(), encoder.vocab_size, encoder.separator, shard_tokens
    ) as writer:
        for batch in in_batches(_counted(sources, documents, summary)):
            for document, ids in zip(batch, encoder.encode(batch), strict=True):
                split = "validation" if _is_chosen(document, validation, seed) else "train"
                text_bytes = sum(len(text.encode()) for text in texts(document))
                writer.add(split, ids, text_bytes)
                counts = summary.splits[split]
                counts.documents += 1
                counts.tokens += len(ids)
                counts.text_bytes += text_bytes
            if progress is not None:
                progress(summary)
        _check(summary, inputs, validation)
    return summary


def _counted(
    sources: Sequence[Source], documents: Sequence[Iterator[Document]], summary: Summary
) -> Iterator[Document]:
    """The documents that hold text; notes what was read and what was empty."""
    done = 0
    for source, each in zip(sources, documents, strict=True):
        for document in each:
            summary.read = done + source.position
            if any(texts(document)):
                yield document
            else:
                summary.empty += 1
        done += source.size or 0


def _is_chosen(document: Document, share: float, seed: int) -> bool:
    if not share:
        return False
    content = document if isinstance(document, str) else json.dumps(document, sort_keys=True)
    key = (seed % (1 << 128)).to_bytes(16, "little")
    digest = hashlib.blake2b(content.encode(), digest_size=8, key=key).digest()
    return int.from_bytes(digest, "little") < share * 2**64


def _check(summary: Summary, inputs: Sequence[str], validation: float) -> None:
    total = sum(counts.documents for counts in summary.splits.values())
    if not total:
        raise FormatError(f"{', '.join(inputs)}: holds no text")
    for split, counts in summary.splits.items():
        if not counts.documents:
            raise InputError(
                f"none of the {total} documents fell into {split}; validation is {validation}: "
                "choose another share or seed"
            )
