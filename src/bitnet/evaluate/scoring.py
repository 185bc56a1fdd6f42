"""Log-likelihoods of continuations, ragged batches through the `Model` protocol.

log p(continuation | context) = Σ_i log softmax(logits_i)[id_i], natural logarithm: logits are float32 from
the full head, the sum over the vocabulary and the sum over ids are float64. Texts become ids, and what is
too long is cut, as in lm-evaluation-harness (`TemplateLM._encode_pair`, `HFLM._loglikelihood_tokens`).

A context that several continuations share runs once: its cache is truncated between them. What a pair gets
does not depend on its company, so batch sizes change no result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bitnet.config import ModelConfig
from bitnet.errors import InputError
from bitnet.generate.model import Cache, Model
from bitnet.tokenizer import Tokenizer

Progress = Callable[[int, int], object]  # called with what is done and what there is to do

_MAX_LOGITS = (
    1 << 25
)  # float32 values that one forward pass may return: 128 MB, 261 rows of 2B4T's vocabulary
_MAX_CACHED = 1 << 13  # tokens that the caches of one batch hold together: 630 MB in 2B4T


@dataclass(frozen=True)
class Score:
    """How likely a continuation is.

    Attributes:
        log_likelihood: in nats, summed over the continuation's ids.
        is_greedy: every id had the highest logit at its place.
        tokens: ids of the continuation.
        bytes: of the continuation in UTF-8; 0 where ids were scored.
        truncated: ids of the context that were cut from the left, for the model's context is shorter.
    """

    log_likelihood: float
    is_greedy: bool
    tokens: int
    bytes: int
    truncated: int


def score(
    model: Model,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[Score]:
    """The log-likelihood of each continuation after its context.

    A space between both belongs to the continuation, as in ("The sky is", " blue"); at the end of a context
    it is moved there. An empty context means the beginning of a text.

    Args:
        pairs: (context, continuation); control tokens in them are plain text.
        batch_size: most contexts that run at once.
        progress: called after each batch with the number of pairs done and that of all.
    Returns:
        One score a pair, in their order.
    Raises:
        InputError: the model has no tokenizer or no token to begin with, or a continuation is empty or
            longer than the model's context.
    """
    if model.tokenizer is None:
        raise InputError("the model has no tokenizer.json; score ids with bitnet.evaluate.scoring.score_ids")
    prefix = prefix_token(model)
    ids = []
    for number, (context, continuation) in enumerate(pairs):
        encoded = encode_pair(model.tokenizer, prefix, context, continuation)
        if not encoded[1]:
            raise InputError(f"continuation {number} is empty; it must hold at least one character")
        ids.append(encoded)
    sizes = [len(continuation.encode()) for _, continuation in pairs]
    return _score(model, ids, sizes, batch_size, progress)


def score_ids(
    model: Model,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> list[Score]:
    """`score` of ids instead of texts; neither a context nor a continuation may be empty."""
    return _score(model, pairs, [0] * len(pairs), batch_size, progress)


def prefix_token(model: Model) -> int:
    """The id that stands for "nothing before": the beginning of text, else the end of one.

    Raises:
        InputError: the model has neither.
    """
    begin = None if model.tokenizer is None else model.tokenizer.bos_token_id
    candidates = [begin, model.config.bos_token_id, *model.config.eos_token_id]
    for token in candidates:
        if token is not None:
            return token
    raise InputError("the model names no bos_token and no eos_token, so nothing can stand before a text")


def encode_pair(
    tokenizer: Tokenizer, prefix: int, context: str, continuation: str, special: bool = False
) -> tuple[list[int], list[int]]:
    """A context's ids, at least one, and those that the continuation adds to them.

    Args:
        prefix: what an empty context is made of.
        special: read control tokens as such, where a chat template wrote them.
    """
    stripped = context.rstrip()
    context, continuation = stripped, context[len(stripped) :] + continuation
    if not context:
        return [prefix], tokenizer.encode(continuation, add_bos=False, special=special)
    whole = tokenizer.encode(context + continuation, special=special)
    before = tokenizer.encode(context, special=special)
    # Where both merge into one token nothing is left; the harness gives up there.
    return before, whole[len(before) :] or tokenizer.encode(continuation, add_bos=False, special=special)


@dataclass
class _Group:
    """Pairs with one context."""

    context: tuple[int, ...]
    pairs: list[int] = field(default_factory=list)
    longest: int = 0  # ids of the longest continuation

    @property
    def capacity(self) -> int:
        return len(self.context) + self.longest - 1  # the last id of a continuation is never run


@dataclass
class _Row:
    """One continuation on its way through the model: `inputs[i]` is to be followed by `targets[i]`."""

    cache: Cache
    inputs: Sequence[int]
    targets: Sequence[int]
    done: int = 0
    log_likelihood: float = 0.0
    is_greedy: bool = True

    def add(self, logits: NDArray[np.float32]) -> None:
        for row, target in zip(logits, self.targets[self.done : self.done + len(logits)], strict=True):
            self.log_likelihood += log_softmax(row, target)
            self.is_greedy &= int(row.argmax()) == target
        self.done += len(logits)


def log_softmax(logits: NDArray[np.float32], token: int) -> float:
    """log softmax(logits)[token] in float64; logits float32 (vocab_size,)."""
    top = logits.max()
    return float(logits[token] - top) - math.log(float(np.exp(logits - top).sum(dtype=np.float64)))


def _score(
    model: Model,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    sizes: Sequence[int],
    batch_size: int,
    progress: Progress | None,
) -> list[Score]:
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")
    found: dict[int, Score] = {}
    _check(pairs, model.config)
    groups, truncated = _groups(pairs, model.config.max_position_embeddings)
    for batch in _batches(groups, batch_size):
        for pair, row in _run_groups(model, batch, pairs):
            found[pair] = Score(
                row.log_likelihood, row.is_greedy, len(row.targets), sizes[pair], truncated[pair]
            )
        if progress is not None:
            progress(len(found), len(pairs))
    return [found[pair] for pair in range(len(pairs))]


def _check(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], config: ModelConfig) -> None:
    for number, (context, continuation) in enumerate(pairs):
        if not context or not continuation:
            raise InputError(f"pair {number}: context and continuation need at least one id each")
        if len(continuation) > config.max_position_embeddings:
            raise InputError(
                f"continuation {number} has {len(continuation)} tokens; "
                f"the model's context holds {config.max_position_embeddings}"
            )
        for token in (*context, *continuation):
            if not 0 <= token < config.vocab_size:
                raise InputError(
                    f"pair {number}: token id {token} is outside 0..{config.vocab_size - 1} (vocab_size)"
                )


def _groups(
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]], longest: int
) -> tuple[list[_Group], list[int]]:
    """Pairs by context, and how much each lost of its context so that context + continuation - 1 fit."""
    groups: dict[tuple[int, ...], _Group] = {}
    lone = []  # a context of one id saves nothing when it is shared, and alone it runs beside others
    truncated = []
    for number, (context, continuation) in enumerate(pairs):
        kept = min(len(context), longest + 1 - len(continuation))
        truncated.append(len(context) - kept)
        key = tuple(context[len(context) - kept :])
        group = _Group(key)
        if kept == 1:
            lone.append(group)
        else:
            group = groups.setdefault(key, group)
        group.pairs.append(number)
        group.longest = max(group.longest, len(continuation))
    return lone + list(groups.values()), truncated


def _batches(groups: Sequence[_Group], batch_size: int) -> Iterator[list[_Group]]:
    batch: list[_Group] = []
    for group in groups:
        cached = sum(other.capacity for other in batch) + group.capacity
        if batch and (len(batch) == batch_size or cached > _MAX_CACHED):
            yield batch
            batch = []
        batch.append(group)
    if batch:
        yield batch


def _run_groups(
    model: Model, groups: Sequence[_Group], pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> Iterator[tuple[int, _Row]]:
    caches = [model.new_cache(group.capacity) for group in groups]
    # The last id of a context runs with each continuation: its logits are the first that count, and only
    # a pass that asks for all logits is sure to compute them with the full head.
    before = [
        (cache, group.context[:-1])
        for cache, group in zip(caches, groups, strict=True)
        if len(group.context) > 1
    ]
    if before:
        model.forward(before)
    for turn in range(max(len(group.pairs) for group in groups)):
        rows = {}
        for cache, group in zip(caches, groups, strict=True):
            if turn < len(group.pairs):
                cache.truncate(len(group.context) - 1)
                targets = pairs[group.pairs[turn]][1]
                rows[group.pairs[turn]] = _Row(cache, [group.context[-1], *targets[:-1]], targets)
        _run_rows(model, list(rows.values()))
        yield from rows.items()


def _run_rows(model: Model, rows: list[_Row]) -> None:
    """Run every row to its end, with no more logits at once than memory should hold."""
    budget = max(1, _MAX_LOGITS // model.config.vocab_size)
    while rows:
        batch, room = [], budget
        for row in rows:
            if room == 0:
                break
            ids = row.inputs[row.done : row.done + room]
            batch.append((row, ids))
            room -= len(ids)
        results = model.forward([(row.cache, ids) for row, ids in batch], all_logits=True)
        for (row, _), logits in zip(batch, results, strict=True):
            row.add(logits)
        rows = [row for row in rows if row.done < len(row.inputs)]
