"""Byte-level BPE: trained on the run's own text, or read from a tokenizer.json.

A tokenizer trained here has `<|endoftext|>` as id 0: it stands before every document and so is both beginning
and end of text. Others bring separators of their own, see `separator_ids`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from bitnet.errors import FormatError, InputError, ResourceError
from bitnet.json_file import read_json_object
from bitnet.tokenizer.tiktoken_file import LLAMA3_PATTERN
from bitnet.train.documents import SEPARATOR, Source, texts

if TYPE_CHECKING:
    from bitnet.train.config import DataSource

Split = Literal["gpt2", "llama3"]

# What ends a document and begins the next, by family: ours, GPT-2 and Qwen; Llama 3 and 2B4T; Llama 2.
_SEPARATORS = ((SEPARATOR,), ("<|end_of_text|>", "<|begin_of_text|>"), ("</s>", "<s>"))


def learn_tokenizer(
    documents: Iterable[str], vocab_size: int, split: Split = "gpt2", option: str = "--vocab-size"
) -> Tokenizer:
    """Learn a vocabulary of `vocab_size` ids.

    Args:
        documents: read once, one after the other.
        split: the pieces that merges stay inside, as GPT-2 or Llama 3 cuts them; Llama 3's numbers have at
            most three digits, and its line ends are pieces of their own.
        option: what the size is called where it was given, for messages.
    Raises:
        InputError: fewer ids than the 256 bytes and the separator, or more than the text yields.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size <= len(alphabet):
        raise InputError(
            f"vocab_size is {vocab_size}; a byte-level vocabulary needs more than {len(alphabet)}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _pre_tokenizer(split)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[SEPARATOR], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    if tokenizer.get_vocab_size() < vocab_size:
        raise InputError(
            f"the text yields only {tokenizer.get_vocab_size()} of {vocab_size} vocabulary entries; "
            f"give more text or a smaller {option}"
        )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SEPARATOR} $A", special_tokens=[(SEPARATOR, tokenizer.token_to_id(SEPARATOR))]
    )
    return tokenizer


def _pre_tokenizer(split: Split) -> pre_tokenizers.PreTokenizer:
    if split == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def train_tokenizer(sources: Sequence[DataSource], vocab_size: int, seed: int) -> Tokenizer:
    """`learn_tokenizer` on a run's sources.

    A file counts in proportion to its passes: the one read most often is taken whole, another by a random
    share of its documents, so that merges go where the training reads.

    Raises: what `learn_tokenizer` and `Source.documents` raise.
    """
    return learn_tokenizer(_sample(sources, seed), vocab_size, option="model.vocab_size")


def _sample(sources: Sequence[DataSource], seed: int) -> Iterator[str]:
    most = max(source.passes for source in sources)
    chance = random.Random(seed)
    for source in sources:
        for document in Source(source.path).documents():
            if chance.random() < source.passes / most:
                yield from texts(document)


def separator_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids before every document: the end of the one before, then its own beginning; often one id is both.

    Raises:
        InputError: the tokenizer has none of the known ones.
    """
    for tokens in _SEPARATORS:
        found = [tokenizer.token_to_id(token) for token in tokens]
        ids = tuple(number for number in found if number is not None)
        if len(ids) == len(tokens):
            return ids
    known = ", or ".join(" and ".join(tokens) for tokens in _SEPARATORS)
    raise InputError(f"the tokenizer has no token that separates documents: {known}")


def special_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """bos_token and eos_token as tokenizer_config.json names them; raises what `separator_ids` raises."""
    end, begin = separator_ids(tokenizer)[0], separator_ids(tokenizer)[-1]
    return {
        "bos_token": str(tokenizer.id_to_token(begin)),
        "eos_token": str(tokenizer.id_to_token(end)),
    }


def separator_id(tokenizer: Tokenizer) -> int:
    """The id that ends a document; raises what `separator_ids` raises."""
    return separator_ids(tokenizer)[0]


def id_bound(tokenizer: Tokenizer) -> int:
    """The number that every id is below: the vocabulary's size, unless it has holes."""
    return 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())


def fingerprint(tokenizer: Tokenizer) -> str:
    """A SHA-256 that two tokenizers share if they give the same ids, however their files are laid out."""
    return hashlib.sha256(without_limits(tokenizer).to_str().encode()).hexdigest()


def without_limits(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that neither cuts texts nor fills them up, as some published files ask for."""
    copy: Tokenizer = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def tokenizer_file(path: Path) -> Path:
    """The tokenizer.json that a path names, itself or by its folder."""
    return path / "tokenizer.json" if path.is_dir() else path


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a tokenizer.json, given itself or by its folder.

    Raises:
        FormatError: it is missing, damaged, or has no token that separates documents.
    """
    file = tokenizer_file(path)
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for missing and damaged files alike
        raise FormatError(f"{file}: not readable as a tokenizer ({error})") from None
    try:
        separator_ids(tokenizer)
    except InputError as error:
        raise FormatError(f"{file}: {error}") from None
    return tokenizer


def read_chat_template(folder: Path) -> str | None:
    """The Jinja text beside a tokenizer, in chat_template.jinja or tokenizer_config.json; None without one.

    Raises:
        FormatError: a file is damaged.
    """
    own, settings = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    try:
        if own.is_file():
            return own.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{own}: cannot be read ({error})") from None
    found = read_json_object(settings).get("chat_template") if settings.is_file() else None
    if isinstance(found, list):  # several named ones
        default = (item for item in found if isinstance(item, dict) and item.get("name") == "default")
        found = next(default, {}).get("template")
    if not isinstance(found, str | None):
        raise FormatError(f"{settings}: chat_template is {type(found).__name__}, expected text")
    return found


def save_tokenizer(
    tokenizer: Tokenizer,
    directory: Path,
    max_length: int | None = None,
    chat_template: str | None = None,
) -> None:
    """Write tokenizer.json and the tokenizer_config.json that transformers reads beside it.

    Args:
        max_length: tokens of the longest text the model takes.
        chat_template: becomes chat_template.jinja.
    Raises:
        ResourceError: the folder cannot be written.
    """
    values: dict[str, object] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    values |= special_tokens(tokenizer) | {"clean_up_tokenization_spaces": False}
    if max_length is not None:
        values["model_max_length"] = max_length
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        text = json.dumps(values, indent=1) + "\n"
        (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")
        if chat_template is not None:
            (directory / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"{directory}: cannot be written ({error.strerror or error})") from None
