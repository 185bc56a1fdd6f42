"""The cases of a benchmark in llama-bench's terms, and how one is timed.

    pp512   a prompt of 512 tokens in one forward pass (prefill)
    tg128   128 tokens, one a pass (decode); with a batch of B, B tokens a pass from B sequences
    depth   tokens in the cache before the clock starts

Decode calls `Model.forward` with fixed random ids: sampling, detokenising and printing are not measured, and
no token depends on what came out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, Protocol

import numpy as np

from bitnet.errors import InputError
from bitnet.generate.model import Model

_WARM_UP_STEPS = 8  # enough to wake the threads and fault in every page of the weights


@dataclass(frozen=True)
class Case:
    """One line of the result: `tokens` are those of one sequence."""

    phase: Literal["pp", "tg"]
    tokens: int
    threads: int
    batch: int = 1
    depth: int = 0

    @property
    def test(self) -> str:
        """llama-bench's name: pp512, tg128."""
        return f"{self.phase}{self.tokens}"

    @property
    def title(self) -> str:
        """With the depth, where there is one."""
        return f"{self.test} @ d{self.depth}" if self.depth else self.test

    @property
    def steps(self) -> list[int]:
        """Tokens a sequence brings to each timed pass."""
        return [self.tokens] if self.phase == "pp" else [1] * self.tokens


@dataclass(frozen=True)
class Plan:
    """Everything to be measured.

    A prompt or generation of 0 tokens is left out. Batches apply to decode: a long prompt fills the machine
    alone.

    Raises:
        InputError: a number is out of range, or nothing is left to measure.
    """

    prompts: tuple[int, ...] = (512,)
    generations: tuple[int, ...] = (128,)
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1,)
    depths: tuple[int, ...] = (0,)
    repetitions: int = 5

    def __post_init__(self) -> None:
        for what, values, least in (
            ("prompt tokens", self.prompts, 0),
            ("generated tokens", self.generations, 0),
            ("threads", self.threads, 1),
            ("batch", self.batches, 1),
            ("depth", self.depths, 0),
            ("repetitions", (self.repetitions,), 1),
        ):
            if any(value < least for value in values):
                raise InputError(f"{what}: {min(values)} is less than {least}")
        if not self.cases(1):
            raise InputError("nothing to measure; give a number of prompt or generated tokens above 0")

    def cases(self, threads: int) -> list[Case]:
        """The cases of one number of threads, in the order they are run."""
        prefill = [
            Case("pp", tokens, threads, 1, depth)
            for depth, tokens in product(self.depths, self.prompts)
            if tokens
        ]
        decode = [
            Case("tg", tokens, threads, batch, depth)
            for depth, tokens, batch in product(self.depths, self.generations, self.batches)
            if tokens
        ]
        return prefill + decode

    def check_context(self, limit: int) -> None:
        """Raises InputError where a case does not fit a context of `limit` tokens."""
        for case in self.cases(1):
            if case.depth + case.tokens > limit:
                needed = case.depth + case.tokens
                raise InputError(f"{case.title} needs a context of {needed} tokens; the model's is {limit}")


class Runner(Protocol):
    """Something that can be timed: our engine or a peer."""

    def prepare(self, case: Case) -> None:
        """Fill the caches to the case's depth and run it once untimed."""
        ...

    def run(self) -> float:
        """Run the prepared case once; tokens per second over all its sequences."""
        ...


class EngineRunner:
    """Our engine, on the number of threads it was loaded with."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def prepare(self, case: Case) -> None:
        limit = case.depth + case.tokens
        self._case = case
        self._caches = [self._model.new_cache(limit) for _ in range(case.batch)]
        self._ids = [
            fixed_ids(self._model.config.vocab_size, limit, sequence) for sequence in range(case.batch)
        ]
        if case.depth:
            for cache, ids in zip(self._caches, self._ids, strict=True):
                self._model.forward([(cache, ids[: case.depth])])
        self._pass_through(case.steps[:_WARM_UP_STEPS])

    def run(self) -> float:
        start = time.perf_counter()
        self._pass_through(self._case.steps)
        return self._case.batch * self._case.tokens / (time.perf_counter() - start)

    def _pass_through(self, steps: Sequence[int]) -> None:
        position = self._case.depth
        for cache in self._caches:
            cache.truncate(position)
        for step in steps:
            batch = [
                (cache, ids[position : position + step])
                for cache, ids in zip(self._caches, self._ids, strict=True)
            ]
            self._model.forward(batch)
            position += step


def fixed_ids(vocab_size: int, count: int, sequence: int = 0) -> list[int]:
    """Token ids, the same on every machine and different for every sequence of a batch."""
    ids: list[int] = np.random.default_rng([vocab_size, sequence]).integers(vocab_size, size=count).tolist()
    return ids


def measure(runners: Sequence[Runner], case: Case, repetitions: int) -> list[list[float]]:
    """Time a case on every runner, in turn (A B A B), so that a machine that slows down slows down all.

    Returns:
        tokens per second, a list of `repetitions` values a runner.
    """
    for runner in runners:
        runner.prepare(case)
    samples: list[list[float]] = [[] for _ in runners]
    for _ in range(repetitions):
        for runner, values in zip(runners, samples, strict=True):
            values.append(runner.run())
    return samples
