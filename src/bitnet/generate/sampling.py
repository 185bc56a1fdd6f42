"""From logits to the next id.

The order is Hugging Face's; each step sees what the one before it left:

1. repetition penalty r (arXiv 1909.05858): logits of ids already in prompt or answer, divided by r where
   positive, multiplied where negative
2. temperature T: logits / T; at T = 0 the highest logit wins, the lowest id among equals, and it ends here
3. top-k: logits below the k-th highest go; equals of the k-th stay
4. top-p (arXiv 1904.09751): the most probable ids stay until their sum reaches p, equals by lowest id
5. min-p (arXiv 2407.01082): ids less probable than min_p times the most probable go
6. one uniform number picks an id by the running sum of what is left, in order of ids

Sorting 128,256 logits takes longer than a small model's forward pass, so nothing sorts more than it must.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import FormatError, InputError

# How far below the highest logit to look first. Most steps of a trained model find all they need within the
# first few, and a pass over 128,256 logits costs 0.05 ms, sorting them 2 ms.
_DEPTHS = (3.0, 6.0, 9.0, 12.0, 15.0, 20.0)


@dataclass(frozen=True)
class SamplingParams:
    """How an answer is drawn and where it ends. The defaults are those published with 2B4T.

    Attributes:
        temperature: 0 means greedy.
        top_k: 0 keeps every id.
        top_p: in (0, 1]; 1 keeps every id.
        min_p: in [0, 1]; 0 keeps every id.
        repetition_penalty: in 0.01..100; 1 changes nothing, more discourages repetition.
        seed: makes the draw repeatable; None draws anew each time.
        stop: strings that end the answer; they are not part of it.
        max_tokens: most ids to generate.
    Raises:
        InputError: a value is out of range; the message names the parameter.
    """

    temperature: float = 0.6
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int = 256

    def __post_init__(self) -> None:
        heat = self.temperature
        _require(_is_real(heat) and heat >= 0, "temperature", heat, "0 or more")
        _require(_is_int(self.top_k) and self.top_k >= 0, "top_k", self.top_k, "a whole number, 0 or more")
        _require(_is_real(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _require(_is_real(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "in 0..1")
        penalty = self.repetition_penalty
        _require(_is_real(penalty) and 0.01 <= penalty <= 100, "repetition_penalty", penalty, "in 0.01..100")
        seed = self.seed
        _require(seed is None or (_is_int(seed) and seed >= 0), "seed", seed, "None or a whole number from 0")
        _require(
            _is_int(self.max_tokens) and self.max_tokens >= 1, "max_tokens", self.max_tokens, "1 or more"
        )
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        _require(all(isinstance(s, str) and s for s in stop), "stop", self.stop, "strings that are not empty")
        object.__setattr__(self, "stop", stop)


class Sampler:
    """Draws the ids of one answer.

    Args:
        vocab_size: length of the logits.
        prompt: ids the repetition penalty counts as seen.
    """

    def __init__(self, params: SamplingParams, vocab_size: int, prompt: Iterable[int] = ()) -> None:
        self._params = params
        self._random = np.random.Generator(np.random.PCG64(params.seed))
        self._seen = np.zeros(vocab_size, dtype=np.bool_)
        self._seen[np.fromiter(prompt, dtype=np.int64)] = True

    def sample(self, logits: NDArray[np.float32]) -> int:
        """The next id; it counts as seen from now on.

        Args:
            logits: float32, (vocab_size,); not changed.
        Raises:
            FormatError: a logit is NaN or infinite.
        """
        if self._params.repetition_penalty != 1:
            logits = self._penalised(logits)
        if not np.isfinite(logits).all():
            bad = np.flatnonzero(~np.isfinite(logits))
            raise FormatError(
                f"the model gives {logits[bad[0]]} as the logit of id {bad[0]} ({bad.size} of {logits.size} "
                "are not finite); its weights are damaged"
            )
        if self._params.temperature == 0:
            token = int(np.argmax(logits))
        else:
            ids, weights = candidates(logits, self._params)
            token = draw(ids, weights, self._random.random())
        self._seen[token] = True
        return token

    def _penalised(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        penalty = np.float32(self._params.repetition_penalty)
        seen = np.flatnonzero(self._seen)
        logits = logits.copy()
        with np.errstate(over="ignore"):  # infinity is reported by the caller
            logits[seen] = np.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        return logits


def candidates(
    logits: NDArray[np.float32], params: SamplingParams
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """Steps 2 to 5: the ids that may come next and their weights.

    Returns:
        ids ascending, and weights relative to the most probable id (which has 1); neither is empty.
    """
    with np.errstate(over="ignore"):  # a tiny temperature gives -inf for all but the highest
        scaled = (logits - logits.max()) / np.float32(
            max(params.temperature, 1e-30)
        )  # float32 knows no 1e-50
    ids: NDArray[np.intp] | None = None  # all
    if 0 < params.top_k < scaled.size:
        ids = _top_k(scaled, params.top_k)
        scaled = scaled[ids]
    if params.top_p < 1:
        kept = _top_p(scaled, params.top_p)
        ids, scaled = kept if ids is None else ids[kept], scaled[kept]
    if params.min_p > 0:
        kept = np.flatnonzero(scaled >= math.log(params.min_p))
        ids, scaled = kept if ids is None else ids[kept], scaled[kept]
    return np.arange(scaled.size) if ids is None else ids, np.exp(scaled)


def draw(ids: NDArray[np.intp], weights: NDArray[np.float32], uniform: float) -> int:
    """Step 6: the id at `uniform`, in [0, 1), of the running sum of the weights."""
    running = np.cumsum(weights, dtype=np.float64)
    place = int(np.searchsorted(running, uniform * running[-1], side="right"))
    return int(ids[min(place, ids.size - 1)])  # uniform * total may round up to the total


def _top_k(scaled: NDArray[np.float32], k: int) -> NDArray[np.intp]:
    """Places, ascending, of the k highest entries and of the equals of the lowest of them."""
    for depth in _DEPTHS:
        near = np.flatnonzero(scaled >= -depth)
        if near.size >= k:
            break
    else:
        near = np.arange(scaled.size)
    values = scaled[near]
    least = np.partition(values, -k)[-k]
    return near[np.flatnonzero(values >= least)]


def _top_p(scaled: NDArray[np.float32], p: float) -> NDArray[np.intp]:
    """Places, ascending, of the most probable entries whose probabilities reach p."""
    weights = np.exp(scaled)
    needed = p * float(weights.sum(dtype=np.float64))
    for depth in _DEPTHS:
        near = np.flatnonzero(scaled >= -depth)
        if float(weights[near].sum(dtype=np.float64)) >= needed:
            break
    else:
        near = np.arange(scaled.size)
    values = weights[near]
    descending = np.sort(values)[::-1]
    count = int(np.searchsorted(np.cumsum(descending, dtype=np.float64), needed)) + 1
    if count >= near.size:
        return near
    least = descending[count - 1]
    above, equal = near[values > least], near[values == least]
    return np.sort(np.concatenate([above, equal[: count - above.size]]))


def _is_real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(holds: bool, parameter: str, value: object, range_: str) -> None:
    if not holds:
        raise InputError(f"{parameter} is {value!r}; it must be {range_}")
