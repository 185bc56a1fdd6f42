"""Byte-level BPE: trained on the run's own text, or read from a tokenizer.json.

Id 0 is `<|endoftext|>`: it stands before every document and so is both beginning and end of text.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from bitnet.errors import FormatError, InputError
from bitnet.train.config import DataSource
from bitnet.train.data import SEPARATOR, read_documents


def train_tokenizer(sources: Sequence[DataSource], vocab_size: int, seed: int) -> Tokenizer:
    """Learn a vocabulary of `vocab_size` ids from the sources' documents.

    A file counts in proportion to its passes: the one read most often is taken whole, another by a random
    share of its documents, so that merges go where the training reads.

    Raises:
        InputError: fewer ids than the 256 bytes and the separator, or more than the text yields.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise InputError(
            f"vocab_size is {vocab_size}; a byte-level vocabulary needs more than {len(alphabet)}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[SEPARATOR], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_sample(sources, seed), trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise InputError(
            f"the text yields only {tokenizer.get_vocab_size()} of {vocab_size} vocabulary entries; "
            "give more text or a smaller --vocab-size"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SEPARATOR} $A", special_tokens=[(SEPARATOR, tokenizer.token_to_id(SEPARATOR))]
    )
    return tokenizer


def _sample(sources: Sequence[DataSource], seed: int) -> Iterator[str]:
    most = max(source.passes for source in sources)
    chance = random.Random(seed)
    for source in sources:
        for document in read_documents(Path(source.path)):
            if chance.random() < source.passes / most:
                yield document


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, given itself or by its folder.

    Raises:
        FormatError: it is missing, damaged, or knows no `<|endoftext|>`.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for missing and damaged files alike
        raise FormatError(f"{file}: not readable as a tokenizer ({error})") from None
    if tokenizer.token_to_id(SEPARATOR) is None:
        raise FormatError(
            f"{file}: has no token {SEPARATOR}; it separates the documents of the training text"
        )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, max_length: int) -> None:
    """Write tokenizer.json and the tokenizer_config.json that transformers reads beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SEPARATOR,
        "eos_token": SEPARATOR,
        "clean_up_tokenization_spaces": False,
        "model_max_length": max_length,
    }
    text = json.dumps(values, indent=1) + "\n"
    (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
