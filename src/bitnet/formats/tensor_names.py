"""The names, shapes and kinds of the tensors a configuration promises, as published checkpoints have them.

model.embed_tokens.weight   model.norm.weight   lm_head.weight (untied only)
model.layers.N.{input_layernorm, post_attention_layernorm}.weight                unless norms are 'linear'
model.layers.N.{self_attn.attn_sub_norm, mlp.ffn_sub_norm}.weight                where norms are 'pre-sub'
model.layers.N.{self_attn.{q,k,v,o}_proj, mlp.{gate,up,down}_proj}.{weight, weight_scale (packed), bias}
and inside a projection whose norm stands there .{rms_norm or layer_norm}.weight
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from bitnet.config import ModelConfig

Kind = Literal["embedding", "norm", "packed", "master", "scale", "bias"]

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
FINAL_NORM = "model.norm.weight"


@dataclass(frozen=True)
class Expected:
    """What a tensor must be. `packed` is uint8; every other kind is BF16, F16 or F32.

    Attributes:
        weights: parameters that an element holds.
    """

    shape: tuple[int, ...]
    kind: Kind
    weights: int = 1


def projections(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Every quantised linear layer: name without suffix -> (out_features, in_features), in layer order."""
    return {
        f"model.layers.{layer}.{name}": shape
        for layer in range(config.num_hidden_layers)
        for name, shape in config.projection_shapes.items()
    }


def norms(config: ModelConfig) -> dict[str, int]:
    """Every norm: tensor name -> width, in layer order, those inside projections and the final norm last."""
    quantization, in_layer = config.quantization, {}
    if quantization.pre_norms:
        in_layer["input_layernorm"] = config.hidden_size
    if quantization.sub_norms:
        in_layer["self_attn.attn_sub_norm"] = config.query_size
    if quantization.pre_norms:
        in_layer["post_attention_layernorm"] = config.hidden_size
    if quantization.sub_norms:
        in_layer["mlp.ffn_sub_norm"] = config.intermediate_size
    widths = {
        f"model.layers.{layer}.{name}.weight": width
        for layer in range(config.num_hidden_layers)
        for name, width in in_layer.items()
    }
    if quantization.linear_norms:
        widths |= {norm_inside(config, name): columns for name, (_, columns) in projections(config).items()}
    return widths | {FINAL_NORM: config.hidden_size}


def norm_inside(config: ModelConfig, projection: str) -> str:
    """Name of the weight of the norm inside a projection, where the configuration has them."""
    return f"{projection}.{config.quantization.norm_kind}_norm.weight"


def expected_tensors(config: ModelConfig) -> dict[str, Expected]:
    """Every tensor of a checkpoint with this configuration, with its shape on disk."""
    packed = config.quantization.quantization_mode == "offline"
    embedding = Expected((config.vocab_size, config.hidden_size), "embedding")
    expected = {EMBEDDING: embedding}
    if not config.tie_word_embeddings:
        expected[HEAD] = embedding
    expected |= {name: Expected((width,), "norm") for name, width in norms(config).items()}
    for name, (rows, columns) in projections(config).items():
        if packed:
            together = config.quantization.codes_a_byte
            expected[f"{name}.weight"] = Expected((rows // together, columns), "packed", together)
            scales = config.quantization.recipe(name, rows).scales
            expected[f"{name}.weight_scale"] = Expected((scales,), "scale")
        else:
            expected[f"{name}.weight"] = Expected((rows, columns), "master")
        if config.mlp_bias if ".mlp." in name else config.attention_bias:
            expected[f"{name}.bias"] = Expected((rows,), "bias")
    return expected


def count_parameters(config: ModelConfig) -> int:
    """Parameters of the model, however they are stored: each code counts as one, scales do not count."""
    return sum(
        math.prod(item.shape) * item.weights
        for item in expected_tensors(config).values()
        if item.kind != "scale"
    )
