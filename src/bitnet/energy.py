"""Energy of the arithmetic and size of the memory, counted from a model's shape: the papers' estimate.

A product of (rows, inner) by (inner, columns) costs, by arXiv 2310.11453,

    floating point   rows * (inner - 1) * columns ADD and rows * inner * columns MUL      (eq. 16, 17)
    BitNet           the same ADD in INT8, and rows * (columns + inner) MUL for the scales     (eq. 18)

Counted are the projections of every layer and attention's two products, which stay floating point and run
over all tokens without a mask. The embedding, the head, norms, softmax and activations are not: with these
rules the published tables come out (docs/energy.md). Moving data, most of a real chip's energy, is not in it.

Equation 18 does not name the type of its MUL; FP16 is taken, the type of what the scales turn the sums into.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from bitnet.config import ModelConfig
from bitnet.errors import InputError

Kind = Literal["fp32", "fp16", "int8"]
Node = Literal["7nm", "45nm"]
Weights = Literal["fp32", "fp16", "bitnet"]

PAPER_TOKENS = 512  # every published figure is for this many
TERNARY_BITS = math.log2(3)

# (ADD, MUL) in pJ: arXiv 2310.11453, table 2, after Horowitz (ISSCC 2014) for 45 nm and PokeBNN for 7 nm
PICOJOULES: dict[Node, dict[Kind, tuple[float, float]]] = {
    "7nm": {"fp32": (0.38, 1.31), "fp16": (0.16, 0.34), "int8": (0.007, 0.07)},
    "45nm": {"fp32": (0.9, 3.7), "fp16": (0.4, 1.1), "int8": (0.03, 0.2)},
}


@dataclass(frozen=True)
class Operations:
    """Additions and multiplications of one part of a model, in numbers of one kind."""

    part: Literal["projections", "scales", "attention", "head"]
    kind: Kind
    adds: int
    muls: int


@dataclass(frozen=True)
class Joules:
    """Energy of additions and of multiplications, in J."""

    add: float
    mul: float

    @property
    def total(self) -> float:
        """Both, in J."""
        return self.add + self.mul


@dataclass(frozen=True)
class WeightBytes:
    """Bytes of a model's matrices; norms, biases and scales, less than a thousandth, are left out.

    Attributes:
        projections: the layers' matrices, at the bits asked for.
        embedding: in FP16.
        head: in FP16; 0 where it is the embedding.
    """

    projections: int
    embedding: int
    head: int

    @property
    def total(self) -> int:
        """All three."""
        return self.projections + self.embedding + self.head


def projections(config: ModelConfig, gated: bool = True) -> dict[str, tuple[int, int]]:
    """The matrices of one layer: name -> (outputs, inputs).

    Args:
        config: the shape.
        gated: False leaves out the gate, as in the Transformers of arXiv 2310.11453.
    """
    return {name: shape for name, shape in config.projection_shapes.items() if gated or "gate" not in name}


def operations(
    config: ModelConfig, tokens: int = PAPER_TOKENS, weights: Weights = "bitnet", gated: bool = True
) -> tuple[Operations, ...]:
    """Operations that read a prompt, by part (arXiv 2310.11453, eq. 16-18).

    A `tokens`-th of it is one token whose context holds `tokens`.

    Args:
        config: the shape.
        tokens: length of the prompt.
        weights: "bitnet" counts INT8 additions and FP16 scales for the projections, "fp16" and "fp32" the
            floating-point twin of the same shape.
        gated: see `projections`.
    Raises:
        InputError: `tokens` is not positive.
    """
    _require_positive("tokens", tokens)
    layers, matrices = config.num_hidden_layers, projections(config, gated).values()
    adds = layers * sum(tokens * (inner - 1) * columns for columns, inner in matrices)
    heads, head_dim = layers * config.num_attention_heads, config.head_dim
    attention = Operations(
        "attention",
        "fp16" if weights == "bitnet" else weights,
        # queries by keys, then probabilities by values
        heads * (tokens * (head_dim - 1) * tokens + tokens * (tokens - 1) * head_dim),
        heads * 2 * tokens * head_dim * tokens,
    )
    if weights != "bitnet":
        muls = layers * sum(tokens * inner * columns for columns, inner in matrices)
        return Operations("projections", weights, adds, muls), attention
    scales = layers * sum(tokens * (columns + inner) for columns, inner in matrices)
    return Operations("projections", "int8", adds, 0), Operations("scales", "fp16", 0, scales), attention


def head_operations(config: ModelConfig, tokens: int = 1) -> Operations:
    """The FP16 head for `tokens` positions, which the papers leave out; BitNet and its twin share it."""
    _require_positive("tokens", tokens)
    inner, columns = config.hidden_size, config.vocab_size
    return Operations("head", "fp16", tokens * (inner - 1) * columns, tokens * inner * columns)


def joules(parts: Iterable[Operations], node: Node) -> Joules:
    """Energy of these operations on chips of one process node (arXiv 2310.11453, table 2)."""
    add = mul = 0.0
    for part in parts:
        add_pj, mul_pj = PICOJOULES[node][part.kind]
        add += part.adds * add_pj
        mul += part.muls * mul_pj
    return Joules(add * 1e-12, mul * 1e-12)


def weight_bytes(config: ModelConfig, bits: float) -> WeightBytes:
    """Bytes of the matrices with `bits` a weight in the projections and 16 elsewhere.

    Args:
        config: the shape.
        bits: 16 for the twin, 2 for our packing and the papers' kernels, `TERNARY_BITS` for the least.
    Raises:
        InputError: `bits` is not positive.
    """
    _require_positive("bits", bits)
    layer = sum(inner * columns for columns, inner in projections(config).values())
    embedding = 2 * config.vocab_size * config.hidden_size
    head = 0 if config.tie_word_embeddings else embedding
    return WeightBytes(math.ceil(config.num_hidden_layers * layer * bits / 8), embedding, head)


def kv_cache_bytes(config: ModelConfig, tokens: int, bits: int = 16) -> int:
    """Bytes of the keys and values of one sequence, without the scales that fewer than 16 bits need.

    Raises:
        InputError: `tokens` or `bits` is not positive.
    """
    _require_positive("tokens", tokens)
    _require_positive("bits", bits)
    return math.ceil(2 * config.num_hidden_layers * config.key_value_size * tokens * bits / 8)


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise InputError(f"{name} is {value!r}; it must be positive")
