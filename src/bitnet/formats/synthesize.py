"""Random checkpoints of the exact published layout, for benchmarks and tests: real sizes and speed, no text.

- Packed codes are uniform in {-1, 0, +1}; a trained model has about 31% zeros, close to that third. Binary
  ones are uniform in {-1, +1}.
- Masters are normal with mean|w| = scale, which quantises to 31% zeros.
- Scales are those of layer 0 of microsoft/bitnet-b1.58-2B-4T.
- Norm weights undo the growth of a projection's output, scale * sqrt(2/3 in_features), so that activations,
  attention scores and logits stay near one and int8 rounding sees what it sees in a trained model.

A share of dead neurons (gate <= 0, which relu² turns into 0) can be asked for. Every embedding then carries
the same vector of signs, and gate's codes lean against it: see `_Votes`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.config import ModelConfig
from bitnet.errors import InputError
from bitnet.formats.checkpoint import write_model_files
from bitnet.formats.safetensors import file_order
from bitnet.formats.tensor_names import Expected, expected_tensors
from bitnet.quant_config import QuantizationMode
from bitnet.quantize.bfloat16 import narrow

_SCALES = {
    "q_proj": 1.21875,
    "k_proj": 1.796875,
    "v_proj": 2.296875,
    "o_proj": 0.96484375,
    "gate_proj": 1.5546875,
    "up_proj": 1.828125,
    "down_proj": 2.15625,
}
# The projection that reads each norm's output; where several do, one of middle scale. `model.norm` is read by
# the head.
_READER = {
    "input_layernorm": "k_proj",
    "attn_sub_norm": "o_proj",
    "post_attention_layernorm": "gate_proj",
    "ffn_sub_norm": "down_proj",
} | {name: name for name in _SCALES}  # a norm inside a projection
_DENSITY = 2 / 3
_BLOCK = 1 << 22  # elements made at once: some 50 MB of temporaries
# With dead neurons: the constant part of an embedding over the deviation of the rest. At a half, rows of the
# tied head grow by an eighth only, so that copies of it in few bits are about as good as without.
_CONSTANT = 0.5
# every byte whose four 2-bit fields are 0, 1 or 2
_VALID_BYTES = np.array(
    [sum(code << (2 * i) for i, code in enumerate(codes)) for codes in itertools.product(range(3), repeat=4)],
    dtype=np.uint8,
)
# the same byte with every code's sign turned
_NEGATED = np.array(
    [sum((2 - (byte >> i & 3)) % 4 << i for i in (0, 2, 4, 6)) for byte in range(256)], np.uint8
)


@dataclass(frozen=True)
class _Votes:
    """How gate projections come to vote against a constant part of the residual stream.

    Embeddings are noise of deviation s plus c s u, u a vector of signs; the sub-norms are made so small that
    all L layers together add a variance of (c s)². Before the feed-forward half of layer l = 1..L a share
    r² = 1 / (1 + 1/c² + (2l - 1) / 2L) of the stream's power then lies along u. Where gate's codes have the
    mean -m along u and density d, a gate output over n inputs has mean -r m n and variance n (d - r² m²), so
    it is <= 0 with probability P where r m = z sqrt(d / (n + z²)), z the normal quantile of P.
    """

    config: ModelConfig
    share: float
    signs: NDArray[np.float32]  # u

    @classmethod
    def for_share(cls, config: ModelConfig, share: float, seed: int) -> _Votes:
        if config.hidden_act != "relu2":
            raise InputError(f"dead neurons need hidden_act relu2; this model has {config.hidden_act}")
        if not 0 < share < 1:
            raise InputError(f"the share of dead neurons is {share}; it must lie between 0 and 1")
        signs = np.random.default_rng([seed]).choice(np.array([-1, 1], np.float32), config.hidden_size)
        votes = cls(config, share, signs)
        if abs(votes.lean(config.num_hidden_layers - 1)) > _DENSITY:
            raise InputError(
                f"a share of {share} dead neurons is more than {config.hidden_size} inputs (hidden_size) can "
                "vote for; ask for one nearer to a half"
            )
        return votes

    @property
    def constant(self) -> float:
        """c s, the size of the constant part in every embedding."""
        return _CONSTANT * self.config.initializer_range

    @property
    def layer_gain(self) -> float:
        """Deviation of what each half of a layer adds to the stream."""
        return self.constant / math.sqrt(2 * self.config.num_hidden_layers)

    def lean(self, layer: int) -> float:
        """The mean of gate's codes along u in the layer of this index, counted from 0; -1..1."""
        depth = (2 * layer + 1) / (2 * self.config.num_hidden_layers)
        along = 1 / math.sqrt(1 + 1 / _CONSTANT**2 + depth)
        z = NormalDist().inv_cdf(self.share)
        return -z * math.sqrt(_DENSITY / (self.config.hidden_size + z * z)) / along

    def signs_at(self, start: int, count: int) -> NDArray[np.float32]:
        """u for `count` consecutive elements of a row-major matrix over the hidden size."""
        return self.signs[np.arange(start, start + count) % self.config.hidden_size]


def synthesize(
    config: ModelConfig,
    directory: str | Path,
    seed: int = 0,
    mode: QuantizationMode = "offline",
    progress: Callable[[int, int], None] | None = None,
    dead_neurons: float | None = None,
) -> None:
    """Write a random checkpoint folder; the same seed gives the same bytes.

    Args:
        config: the shape.
        directory: must not exist, or be empty.
        mode: "offline" for packed codes, "online" for bfloat16 masters.
        progress: called with the bytes made so far and their total, block by block.
        dead_neurons: share of gate outputs that are <= 0 in every layer, on average over rows and tokens.
            None is a half, as random weights have it; trained models have more.
    Raises:
        InputError: the folder exists and is not empty, or the share cannot be had.
        ResourceError: the disk has no room; the message says how much is needed.
    """
    if mode != config.quantization.quantization_mode:
        config = config.with_quantization(mode)
    votes = None if dead_neurons is None else _Votes.for_share(config, dead_neurons, seed)
    expected = expected_tensors(config)
    shapes = file_order(
        {name: ("U8" if item.kind == "packed" else "BF16", item.shape) for name, item in expected.items()}
    )
    blocks: Iterator[NDArray[Any]] = (
        block
        for index, name in enumerate(shapes)
        for block in _random_blocks(name, expected[name], config, votes, np.random.default_rng([seed, index]))
    )
    write_model_files(directory, config, shapes, blocks, progress=progress)


def _random_blocks(
    name: str, item: Expected, config: ModelConfig, votes: _Votes | None, random: np.random.Generator
) -> Iterator[NDArray[Any]]:
    size = math.prod(item.shape)
    module = name.split(".")[-3 if name.endswith(("rms_norm.weight", "layer_norm.weight")) else -2]
    if item.kind == "scale":
        scale = _SCALES[module]
        yield narrow(
            np.full(size, scale if config.quantization.linear_class == "autobitlinear" else 1 / scale)
        )
        return
    against = votes if module == "gate_proj" else None
    for start in range(0, size, _BLOCK):
        count = min(_BLOCK, size - start)
        if item.kind == "packed" and against is not None:
            yield _leaning_bytes(against.lean(_layer(name)), against.signs_at(start, count), random)
        elif item.kind == "packed" and config.quantization.weights == "binary":
            yield random.integers(256, size=count, dtype=np.uint8)
        elif item.kind == "packed":
            yield _VALID_BYTES[random.integers(len(_VALID_BYTES), size=count, dtype=np.uint8)]
        elif item.kind == "norm":
            middle = _norm_weight(module, size)
            if votes is not None and module in ("attn_sub_norm", "ffn_sub_norm"):
                middle *= votes.layer_gain
            yield narrow(random.uniform(0.8 * middle, 1.2 * middle, size=count))
        else:
            values = random.standard_normal(count, dtype=np.float32)
            if item.kind == "master" and against is not None:
                values += _normal_mean(against.lean(_layer(name))) * against.signs_at(start, count)
            # mean|w| of a normal is its deviation times sqrt(2/pi)
            deviation = (
                _SCALES[module] * math.sqrt(math.pi / 2)
                if item.kind == "master"
                else config.initializer_range
            )
            values *= np.float32(deviation)
            if votes is not None and module == "embed_tokens":
                values += np.float32(votes.constant) * votes.signs_at(start, count)
            yield narrow(values)


def _leaning_bytes(lean: float, signs: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.uint8]:
    """Packed bytes, one a sign: each of the four codes is 0 in a third of cases, and `lean` times its sign in
    the mean. The four belong to four rows of the same column, hence to one sign."""
    chances = [1 / 3 - lean / 2, 1 / 3, 1 / 3 + lean / 2]
    joint = [math.prod(codes) for codes in itertools.product(chances, repeat=4)]
    drawn = random.choice(_VALID_BYTES, size=len(signs), p=joint)
    return np.where(signs > 0, drawn, _NEGATED[drawn])


def _normal_mean(lean: float) -> np.float32:
    """The mean of a normal of deviation 1 whose codes have the mean `lean`, to first order.

    A code is not 0 beyond t = mean|w| / 2 = 1 / sqrt(2 pi), so a small mean moves the codes' by twice the
    density at t.
    """
    return np.float32(lean / (2 * NormalDist().pdf(1 / math.sqrt(2 * math.pi))))


def _layer(name: str) -> int:
    return int(name.split(".")[2])


def _norm_weight(module: str, width: int) -> float:
    if module not in _READER:
        return 1.0
    return 1 / (_SCALES[_READER[module]] * math.sqrt(_DENSITY * width))
