"""Random checkpoints of the exact published layout, for benchmarks and tests: real sizes and speed, no text.

- Packed codes are uniform in {-1, 0, +1}; a trained model has about 31% zeros, close to that third.
- Masters are normal with mean|w| = scale, which quantises to 31% zeros.
- Scales are those of layer 0 of microsoft/bitnet-b1.58-2B-4T.
- Norm weights undo the growth of a projection's output, scale * sqrt(2/3 in_features), so that activations,
  attention scores and logits stay near one and int8 rounding sees what it sees in a trained model.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.config import ModelConfig, QuantizationMode
from bitnet.formats.checkpoint import write_model_files
from bitnet.formats.safetensors import file_order
from bitnet.formats.tensor import NUMPY_DTYPES
from bitnet.formats.tensor_names import Expected, expected_tensors
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
}
_DENSITY = 2 / 3
_BLOCK = 1 << 22  # elements made at once: some 50 MB of temporaries
# every byte whose four 2-bit fields are 0, 1 or 2
_VALID_BYTES = np.array(
    [sum(code << (2 * i) for i, code in enumerate(codes)) for codes in itertools.product(range(3), repeat=4)],
    dtype=np.uint8,
)


def synthesize(
    config: ModelConfig,
    directory: str | Path,
    seed: int = 0,
    mode: QuantizationMode = "offline",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a random checkpoint folder; the same seed gives the same bytes.

    Args:
        config: the shape.
        directory: must not exist, or be empty.
        mode: "offline" for packed codes, "online" for bfloat16 masters.
        progress: called with the bytes made so far and their total, block by block.
    Raises:
        InputError: the folder exists and is not empty.
        ResourceError: the disk has no room; the message says how much is needed.
    """
    if mode != config.quantization.quantization_mode:
        config = config.with_quantization(mode)
    expected = expected_tensors(config)
    shapes = file_order(
        {name: ("U8" if item.kind == "packed" else "BF16", item.shape) for name, item in expected.items()}
    )
    blocks: Iterator[NDArray[Any]] = (
        block
        for index, name in enumerate(shapes)
        for block in _random_blocks(name, expected[name], config, np.random.default_rng([seed, index]))
    )
    if progress is not None:
        blocks = _reported(blocks, shapes, progress)
    write_model_files(directory, config, shapes, blocks)


def _reported(
    blocks: Iterator[NDArray[Any]],
    shapes: Mapping[str, tuple[str, tuple[int, ...]]],
    progress: Callable[[int, int], None],
) -> Iterator[NDArray[Any]]:
    total = sum(NUMPY_DTYPES[dtype].itemsize * math.prod(shape) for dtype, shape in shapes.values())
    done = 0
    for block in blocks:
        yield block
        done += block.nbytes
        progress(done, total)


def _random_blocks(
    name: str, item: Expected, config: ModelConfig, random: np.random.Generator
) -> Iterator[NDArray[Any]]:
    size = math.prod(item.shape)
    module = name.split(".")[-2]
    if item.kind == "scale":
        scale = _SCALES[module]
        yield narrow(
            np.full(size, scale if config.quantization.linear_class == "autobitlinear" else 1 / scale)
        )
        return
    for start in range(0, size, _BLOCK):
        count = min(_BLOCK, size - start)
        if item.kind == "packed":
            yield _VALID_BYTES[random.integers(len(_VALID_BYTES), size=count, dtype=np.uint8)]
        elif item.kind == "norm":
            middle = _norm_weight(module, size)
            yield narrow(random.uniform(0.8 * middle, 1.2 * middle, size=count))
        else:
            values = random.standard_normal(count, dtype=np.float32)
            # mean|w| of a normal is its deviation times sqrt(2/pi)
            deviation = (
                _SCALES[module] * math.sqrt(math.pi / 2)
                if item.kind == "master"
                else config.initializer_range
            )
            values *= np.float32(deviation)
            yield narrow(values)


def _norm_weight(module: str, width: int) -> float:
    if module not in _READER:
        return 1.0
    return 1 / (_SCALES[_READER[module]] * math.sqrt(_DENSITY * width))
