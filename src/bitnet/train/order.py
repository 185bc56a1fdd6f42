"""The order in which a run reads its sources: a closed form of (seed, step), with no state to save.

A pass cuts a corpus, a ring of T ids, into T // length windows of length + 1 ids (the targets are the inputs
one later), at a new offset each time. A source of P passes has round(P * windows) windows in all; together
they are the run's, which lie at the positions 0, 1, 2, …; step s of size B takes s * B to (s + 1) * B - 1.

Which window lies where:

1. `_Plan` gives the number of windows that each source has had when x positions are done, C(x): a line with a
   bend at every `until`. Positions come in blocks of at most 1,024 that no bend cuts: the block from x to y
   holds the windows from floor(C(x)) to floor(C(y)) of every source, and so each source's share.
2. Within a block the sources are shuffled.
3. A source's n-th window is of pass n // windows, and a keyed permutation of that pass says which one.

Permutations are Feistel networks over splitmix64 (Steele, Lea, Flood 2014), not a library's generator, whose
next version may draw other numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from itertools import compress, pairwise

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import InputError
from bitnet.train.shards import Corpus

_BLOCK = 1024
_ROUNDS = 6  # Luby and Rackoff need 4; two more for domains of few bits
_WORD = (1 << 64) - 1


class Batches:
    """The run's batches; equal arguments give equal batches, whatever was read before and in which process.

    Args:
        corpora: one a source.
        shares: (passes, until) of each: how often it is read (0.5: a random half of it), and the first part
            (0..1) of the run's windows that this is spread over.
        length: sequence_length.
        seed: of offsets and order.
    Raises:
        InputError: a corpus is shorter than a window, or the shares leave a part of the run without text.
    """

    def __init__(
        self, corpora: Sequence[Corpus], shares: Sequence[tuple[float, float]], length: int, seed: int
    ) -> None:
        for corpus in corpora:
            if len(corpus) <= length:
                raise InputError(
                    f"data {corpus.name}: {len(corpus)} tokens do not fill one sequence of {length} and the "
                    "token after it; give more text or a smaller sequence_length"
                )
        self._corpora, self._length, self._seed = list(corpora), length, seed
        self._windows = [len(corpus) // length for corpus in corpora]
        totals = [
            max(1, round(passes * windows))
            for windows, (passes, _) in zip(self._windows, shares, strict=True)
        ]
        names = [corpus.name for corpus in corpora]
        self._plan = _Plan(totals, [until for _, until in shares], names)
        self._block_start, self._block = 0, np.empty((0, 2), np.int64)  # the one read last

    def __len__(self) -> int:
        """Windows of all passes together."""
        return self._plan.total

    def batch(
        self, step: int, size: int, rows: slice | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Inputs and targets of a step; beyond the last window it starts again with the first.

        Args:
            size: windows of the step.
            rows: those of them that this process takes; None: all.
        Returns:
            Two int64 (rows, length).
        """
        wanted = range(step * size, (step + 1) * size)[rows if rows is not None else slice(None)]
        ids = np.empty((len(wanted), self._length + 1), np.int64)
        for row, position in enumerate(wanted):
            source, number = self.window(position % len(self))
            ids[row] = self._read(source, number)
        return ids[:, :-1], ids[:, 1:]

    def window(self, position: int) -> tuple[int, int]:
        """Source and number, counted over its passes, of the window at a position below len(self)."""
        if not self._block_start <= position < self._block_start + len(self._block):
            x, y = self._plan.block(position)
            first, last = self._plan.counts(x), self._plan.counts(y)
            self._block_start, self._block = sum(first), self._shuffled(first, last)
        source, number = self._block[position - self._block_start]
        return int(source), int(number)

    def _shuffled(self, first: Sequence[int], last: Sequence[int]) -> NDArray[np.int64]:
        """Source and number of the windows of one block, int64 (windows, 2).

        Args:
            first, last: of each source, the number of its first window, and of the first one after the block.
        """
        sources = np.repeat(np.arange(len(first)), np.subtract(last, first))
        key = np.uint64(_key(self._seed, sum(first)))
        noise = _mix(np.arange(len(sources), dtype=np.uint64) ^ key)
        sources = sources[np.argsort(noise, kind="stable")]
        numbers = np.empty_like(sources)
        for source, begin in enumerate(first):
            places = np.flatnonzero(sources == source)
            numbers[places] = begin + np.arange(len(places))
        return np.stack([sources, numbers], axis=1)

    def _read(self, source: int, number: int) -> NDArray[np.int64]:
        """The ids of a source's window, int64 (length + 1,)."""
        corpus, windows = self._corpora[source], self._windows[source]
        pass_, place = divmod(number, windows)
        key = _key(self._seed, source, pass_)
        offset = _key(key, 0) % len(corpus)
        return corpus.take(offset + permute(place, windows, key) * self._length, self._length + 1)


def permute(place: int, size: int, key: int) -> int:
    """Where a permutation of 0 … size - 1, chosen by the key, sends `place`.

    A Feistel network permutes the next power of 4 or above; what falls outside goes through again (cycle
    walking), which ends because the walk of an inner place comes back to it at the latest.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    keys = [_key(key, 1, number) for number in range(_ROUNDS)]
    while True:
        left, right = place >> half, place & mask
        for round_key in keys:
            left, right = right, left ^ (_mix_integer(right ^ round_key) & mask)
        place = left << half | right
        if place < size:
            return place


class _Plan:
    """How many windows of each source are done after x positions.

    Going back from the end, each stretch between two neighbouring `until`s is filled by the sources that are
    still read there, in proportion to what they have left; what is left at the start of all stretches is 0.
    So a source that ends early is spread evenly, and one that lasts makes room for it. All fractions are
    exact: a rounding error would give a window twice, or never, on another machine.
    """

    def __init__(self, totals: Sequence[int], untils: Sequence[float], names: Sequence[str]) -> None:
        self.total = sum(totals)
        ends = [Fraction(until).limit_denominator(10**6) * self.total for until in untils]
        self._bends = [Fraction(0), *sorted(set(ends))]
        if self._bends[-1] != self.total:
            raise InputError(f"data {', '.join(names)}: all end before the run does; leave one at until 1")
        left = [Fraction(total) for total in totals]
        done = [left]
        for begin, end in reversed(list(pairwise(self._bends))):
            active = [last >= end for last in ends]
            available = sum(compress(left, active), Fraction(0))
            if available < end - begin:
                raise InputError(
                    f"data {', '.join(compress(names, active))}: {int(available)} windows of text do not "
                    f"fill {int(end - begin)} of the run's {self.total}, where the other sources have ended; "
                    "raise its passes, or until of the others"
                )
            kept = 1 - (end - begin) / available
            left = [amount * kept if reads else amount for amount, reads in zip(left, active, strict=True)]
            done.append(left)
        self._done = done[::-1]  # at each bend

    def counts(self, x: Fraction) -> list[int]:
        """Windows of each source before x."""
        number = max(1, bisect_left(self._bends, x))
        begin, end = self._bends[number - 1], self._bends[number]
        part = (x - begin) / (end - begin)
        before, after = self._done[number - 1], self._done[number]
        return [int(a + (b - a) * part) for a, b in zip(before, after, strict=True)]

    def block(self, position: int) -> tuple[Fraction, Fraction]:
        """The x at which the block of a position begins and ends.

        Rounding down leaves at most one window a source for later, so that the search ends soon.
        """
        number = max(1, bisect_left(self._bends, Fraction(position)))
        x = self._bends[number - 1]
        x += (Fraction(position) - x) // _BLOCK * _BLOCK
        while True:
            if x == self._bends[number]:
                number += 1
            y = min(x + _BLOCK, self._bends[number])
            if sum(self.counts(y)) > position:
                return x, y
            x = y


def _key(seed: int, *parts: int) -> int:
    """64 bits that differ for every seed and every part."""
    key = _mix_integer(seed)
    for part in parts:
        key = _mix_integer(key ^ part)
    return key


def _mix_integer(value: int) -> int:
    """One output of splitmix64."""
    value = (value + 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ value >> 30) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ value >> 27) * 0x94D049BB133111EB) & _WORD
    return value ^ value >> 31


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`_mix_integer` of each value; arrays of uint64 wrap round by themselves."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
