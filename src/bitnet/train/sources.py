"""What a run reads, by path: a prepared folder, which is mapped, or a file, which is encoded in memory."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import tokenizers

from bitnet.errors import FormatError, InputError
from bitnet.train.documents import Source, texts
from bitnet.train.encoding import Encoder, in_batches
from bitnet.train.shards import TOKENIZER, Corpus, Manifest, dtype_for
from bitnet.train.tokenizer import fingerprint, load_tokenizer


def open_source(
    path: Path,
    tokenizer: tokenizers.Tokenizer,
    split: str = "train",
    verify: bool = True,
    chat_template: str | None = None,
) -> Corpus:
    """The corpus at a path.

    Args:
        tokenizer: the run's.
        split: of a prepared folder; a file has only one.
        verify: compare a prepared folder's hashes, which reads all of it.
        chat_template: the tokenizer's, for conversations in a file.
    Raises:
        FormatError: the source is missing, damaged, or holds no text.
        InputError: the folder was prepared with another tokenizer or has no such split; or a data set
            of the Hub.
        UnsupportedError: a kind of file that is not read.
    """
    if path.is_dir():
        _check_tokenizer(path, tokenizer)
        return Corpus.open(path, split, verify)
    refuse_hub(str(path))
    return _read(path, tokenizer, chat_template)


def refuse_hub(path: str) -> None:
    """Raises InputError: the path names a data set of the Hub."""
    if path.startswith("hf:"):
        raise InputError(
            f"{path}: a data set of the Hub is not read during training; `bitnet prepare` it first"
        )


def _read(path: Path, tokenizer: tokenizers.Tokenizer, chat_template: str | None) -> Corpus:
    encoder = Encoder(tokenizer, chat_template=chat_template)
    dtype = np.dtype(dtype_for(encoder.vocab_size))
    rows = []
    text_bytes = 0
    for batch in in_batches(Source(str(path)).documents()):
        documents = [document for document in batch if any(texts(document))]
        rows += [ids.astype(dtype) for ids in encoder.encode(documents)]
        text_bytes += sum(len(text.encode()) for document in documents for text in texts(document))
    if not rows:
        raise FormatError(f"{path}: holds no text")
    starts = np.cumsum([0] + [len(row) for row in rows[:-1]]).astype(np.uint64)
    return Corpus.from_ids(np.concatenate(rows), str(path), starts, encoder.separator, text_bytes)


def _check_tokenizer(folder: Path, tokenizer: tokenizers.Tokenizer) -> None:
    manifest = Manifest.read(folder)
    file = folder / TOKENIZER
    try:
        found = hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise FormatError(f"{file}: cannot be read ({error.strerror or error})") from None
    if found != manifest.tokenizer_sha256:
        raise FormatError(
            f"{file}: is damaged: its sha256 is {found}, the manifest says {manifest.tokenizer_sha256}; "
            "copy or prepare it anew"
        )
    if fingerprint(load_tokenizer(file)) != fingerprint(tokenizer):
        raise InputError(
            f"{folder}: was prepared with another tokenizer than the run's; prepare it with the run's "
            f"tokenizer.json, or train with {file}"
        )
