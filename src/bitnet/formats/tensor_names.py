"""The names, shapes and kinds of the tensors a configuration promises, as published checkpoints have them.

model.embed_tokens.weight   model.norm.weight   lm_head.weight (untied only)
model.layers.N.{input_layernorm, post_attention_layernorm, self_attn.attn_sub_norm, mlp.ffn_sub_norm}.weight
model.layers.N.{self_attn.{q,k,v,o}_proj, mlp.{gate,up,down}_proj}.{weight, weight_scale (packed), bias}
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
    """What a tensor must be. `packed` is uint8; every other kind is BF16, F16 or F32."""

    shape: tuple[int, ...]
    kind: Kind


def projections(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Every quantised linear layer: name without suffix -> (out_features, in_features), in layer order."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.query_size, config.key_value_size
    in_layer = {
        "self_attn.q_proj": (queries, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, queries),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return {
        f"model.layers.{layer}.{name}": shape
        for layer in range(config.num_hidden_layers)
        for name, shape in in_layer.items()
    }


def norms(config: ModelConfig) -> dict[str, int]:
    """Every RMS norm: tensor name -> width, in layer order, the final norm last."""
    in_layer = {
        "input_layernorm": config.hidden_size,
        "self_attn.attn_sub_norm": config.query_size,
        "post_attention_layernorm": config.hidden_size,
        "mlp.ffn_sub_norm": config.intermediate_size,
    }
    widths = {
        f"model.layers.{layer}.{name}.weight": width
        for layer in range(config.num_hidden_layers)
        for name, width in in_layer.items()
    }
    return widths | {FINAL_NORM: config.hidden_size}


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
            expected[f"{name}.weight"] = Expected((rows // 4, columns), "packed")
            expected[f"{name}.weight_scale"] = Expected((1,), "scale")
        else:
            expected[f"{name}.weight"] = Expected((rows, columns), "master")
        if config.mlp_bias if ".mlp." in name else config.attention_bias:
            expected[f"{name}.bias"] = Expected((rows,), "bias")
    return expected


def count_parameters(config: ModelConfig) -> int:
    """Parameters of the model, however they are stored: each code counts as one, scales do not count."""
    return sum(
        math.prod(item.shape) * (4 if item.kind == "packed" else 1)
        for item in expected_tensors(config).values()
        if item.kind != "scale"
    )
