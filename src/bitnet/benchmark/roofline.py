"""The memory's limit on decoding: every step reads every weight once, however many sequences share it.

    GB/s  = bytes a step reads * steps per second
    share = GB/s / what plain reads reach on the same threads

Counted are the packed weights (2 bits each, binary ones 1) and the head; not counted are norms, keys and
values, and the few head rows that are computed again exactly. The count is of a dense step: leaving out dead
neurons reads less, so the share may come out above one then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bitnet import _core
from bitnet.config import ModelConfig
from bitnet.formats.tensor_names import expected_tensors

HeadType = Literal["full", "shortlist"]

_MEGABYTES = 512  # read by the bandwidth test: more than most last-level caches hold
_HEAD_BITS = {"full": 16, "shortlist": 4}


@dataclass(frozen=True)
class StepBytes:
    """Bytes of weights that one decode step reads."""

    ternary: int
    head: int

    @property
    def total(self) -> int:
        return self.ternary + self.head


def step_bytes(config: ModelConfig, head: HeadType) -> StepBytes:
    """What one step of a dense decode reads, with a bfloat16 head or its 4-bit copy."""
    packed = expected_tensors(config.with_quantization("offline"))
    ternary = sum(math.prod(item.shape) for item in packed.values() if item.kind == "packed")
    return StepBytes(ternary, config.vocab_size * config.hidden_size * _HEAD_BITS[head] // 8)


def read_bandwidth(threads: int) -> float:
    """GB/s of plain reads on that many threads, best of five passes over more than the caches hold."""
    return _core.read_bandwidth(threads, _MEGABYTES)
