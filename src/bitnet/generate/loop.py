"""Prefill and decode: the prompt in one forward pass, then one id after another until something ends it."""

from __future__ import annotations

import operator
import time
from collections.abc import Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import InputError
from bitnet.generate.model import Cache, Model
from bitnet.generate.sampling import Sampler, SamplingParams
from bitnet.generate.stop_strings import StopStrings

StopReason = Literal["stop_token", "stop_string", "length"]


@dataclass(frozen=True)
class Generation:
    """An answer.

    Attributes:
        ids: what was generated, a stop token included.
        text: the answer without stop token or stop string; empty for a model without a tokenizer.
        prompt_tokens: length of the prompt.
        cached_tokens: how many of them were in the cache already.
        prompt_seconds: spent on the forward pass of the others.
        generation_seconds: spent on everything after; a caller's time between two pieces does not count.
        stop_reason: "length" is max_tokens or the end of the context; None means not ended (interrupted).
    """

    ids: tuple[int, ...]
    text: str
    prompt_tokens: int
    cached_tokens: int
    prompt_seconds: float
    generation_seconds: float
    stop_reason: StopReason | None

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens a second; 0 before the prompt has run."""
        return (self.prompt_tokens - self.cached_tokens) / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def generation_rate(self) -> float:
        """Generated tokens a second; the first comes with the prompt's pass and does not count."""
        passes = len(self.ids) - 1
        return passes / self.generation_seconds if passes > 0 and self.generation_seconds else 0.0


class Stream(Iterator[str]):
    """An answer while it is made: iterate over its text.

    Each step generates one id and gives the text it completes. That may be empty: within a character,
    within what may become a stop string, or without a tokenizer. After an interrupt, `result` and the cache
    are sound.

    Args:
        prompt: ids, not empty.
        cache: holds the first `cache.length` ids of the prompt, not all of them; None makes a new one.
        stop_tokens: end the answer; None takes the model's.
    Raises:
        InputError: the prompt is empty, too long, or holds ids outside the vocabulary.
    """

    def __init__(
        self,
        model: Model,
        prompt: Sequence[int],
        params: SamplingParams,
        cache: Cache | None = None,
        stop_tokens: Collection[int] | None = None,
    ) -> None:
        self._model = model
        self._prompt = _checked(prompt, model)
        self._params = params
        self._stop_tokens = model.stop_tokens if stop_tokens is None else frozenset(stop_tokens)
        if cache is None:
            # The last id generated is never run, so it needs no place.
            longest = len(self._prompt) + params.max_tokens - 1
            cache = model.new_cache(min(longest, model.config.max_position_embeddings))
        self._cache = cache
        self._cached_tokens = cache.length
        self._ids: list[int] = []
        self._pieces: list[str] = []
        self._prompt_seconds = 0.0
        self._generation_seconds = 0.0
        self._stop_reason: StopReason | None = None
        self._steps = self._run()

    def __next__(self) -> str:
        return next(self._steps)

    def close(self) -> None:
        """Generate nothing more; `result` stays."""
        self._steps.close()

    @property
    def ids(self) -> Sequence[int]:
        """Generated so far."""
        return self._ids

    @property
    def result(self) -> Generation:
        """The answer so far; complete when the iteration is."""
        return Generation(
            ids=tuple(self._ids),
            text="".join(self._pieces),
            prompt_tokens=len(self._prompt),
            cached_tokens=self._cached_tokens,
            prompt_seconds=self._prompt_seconds,
            generation_seconds=self._generation_seconds,
            stop_reason=self._stop_reason,
        )

    def _run(self) -> Generator[str, None, None]:
        sampler = Sampler(self._params, self._model.config.vocab_size, self._prompt)
        tokenizer = self._model.tokenizer
        text = None if tokenizer is None else tokenizer.stream()
        stop = StopStrings(self._params.stop)
        start = time.perf_counter()
        logits = self._forward(self._prompt[self._cache.length :])
        self._prompt_seconds = time.perf_counter() - start
        while True:
            start = time.perf_counter()
            if self._ids:
                logits = self._forward(self._ids[-1:])
            token = sampler.sample(logits)
            self._ids.append(token)
            stopped = token in self._stop_tokens
            piece = "" if text is None or stopped else stop.push(text.push(token))
            if stopped:
                self._stop_reason = "stop_token"
            elif stop.found:
                self._stop_reason = "stop_string"
            elif len(self._ids) == self._params.max_tokens or self._cache.length == self._cache.capacity:
                self._stop_reason = "length"
            if self._stop_reason and text is not None and not stop.found:
                piece += self._last_words(text.finish(), stop)
            self._pieces.append(piece)
            self._generation_seconds += time.perf_counter() - start
            yield piece
            if self._stop_reason:
                return

    def _last_words(self, rest: str, stop: StopStrings) -> str:
        """What detokenizer and stop strings held back; the rest may complete a stop string after all."""
        piece = stop.push(rest)
        if stop.found:
            self._stop_reason = "stop_string"
            return piece
        return piece + stop.finish()

    def _forward(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return self._model.forward([(self._cache, ids)])[0]


def stream(
    model: Model,
    prompt: str | Sequence[int],
    params: SamplingParams | None = None,
    *,
    stop_tokens: Collection[int] | None = None,
) -> Stream:
    """Continue a prompt, piece by piece.

    Args:
        prompt: text (control tokens in it are plain text; BOS is added) or ids, taken as they are.
        params: sampling and limits; None takes the defaults.
        stop_tokens: end the answer; None takes the model's, () none.
    Raises:
        InputError: the prompt is empty, too long, holds ids outside the vocabulary, or is text for a model
            without a tokenizer.
    """
    if isinstance(prompt, str):
        prompt = _encode(model, prompt)
    return Stream(model, prompt, params or SamplingParams(), stop_tokens=stop_tokens)


def generate(
    model: Model,
    prompt: str | Sequence[int],
    params: SamplingParams | None = None,
    *,
    stop_tokens: Collection[int] | None = None,
) -> Generation:
    """Continue a prompt to the end; arguments and errors as in `stream`."""
    running = stream(model, prompt, params, stop_tokens=stop_tokens)
    for _ in running:
        pass
    return running.result


def _encode(model: Model, prompt: str) -> list[int]:
    if model.tokenizer is None:
        raise InputError("the model has no tokenizer.json; give the prompt as ids")
    if not prompt:
        raise InputError("the prompt is empty")
    return model.tokenizer.encode(prompt)


def _checked(prompt: Sequence[int], model: Model) -> list[int]:
    vocab_size = model.config.vocab_size
    context = model.config.max_position_embeddings
    try:
        ids = [operator.index(token) for token in prompt]
    except TypeError:
        raise InputError("the prompt holds something that is no id; give text or whole numbers") from None
    if not ids:
        raise InputError("the prompt is empty")
    for place, token in enumerate(ids):
        if not 0 <= token < vocab_size:
            raise InputError(
                f"prompt id {token} (place {place}) is outside the vocabulary 0..{vocab_size - 1}"
            )
    if len(ids) > context:
        raise InputError(f"the prompt has {len(ids)} tokens; the model's context holds {context}")
    return ids
