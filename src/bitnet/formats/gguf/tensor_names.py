"""Tensor names of llama.cpp's BitNet architectures, and the published checkpoint's names for them.

token_embd.weight  output.weight (untied only)  output_norm.weight
blk.N.{attn_norm, attn_sub_norm, ffn_norm, ffn_sub_norm}.weight
blk.N.{attn_q, attn_k, attn_v, attn_output, ffn_gate, ffn_up, ffn_down}.{weight, bias, scale}

`scale` is an F32 factor of its own that some converters of llama.cpp write beside a weight.
"""

from __future__ import annotations

import re

from bitnet.formats.tensor_names import EMBEDDING, FINAL_NORM, HEAD

SCALE = "weight_scale"  # the published suffix

_PLAIN = {"token_embd.weight": EMBEDDING, "output.weight": HEAD, "output_norm.weight": FINAL_NORM}
_NORMS = {
    "attn_norm": "input_layernorm",
    "attn_sub_norm": "self_attn.attn_sub_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_sub_norm": "mlp.ffn_sub_norm",
}
_PROJECTIONS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_SUFFIXES = {"weight": "weight", "bias": "bias", "scale": SCALE}
_IN_LAYER = re.compile(r"blk\.(0|[1-9][0-9]*)\.(\w+)\.(weight|bias|scale)", re.ASCII)
_PUBLISHED_IN_LAYER = re.compile(r"model\.layers\.([0-9]+)\.(.+)\.(\w+)", re.ASCII)


def published_name(name: str) -> str | None:
    """The published checkpoint's name of a GGUF tensor, or None if it has none."""
    if name in _PLAIN:
        return _PLAIN[name]
    match = _IN_LAYER.fullmatch(name)
    if match is None:
        return None
    layer, part, suffix = match.groups()
    if part in _NORMS and suffix == "weight":
        return f"model.layers.{layer}.{_NORMS[part]}.weight"
    if part in _PROJECTIONS:
        return f"model.layers.{layer}.{_PROJECTIONS[part]}.{_SUFFIXES[suffix]}"
    return None


def gguf_name(published: str) -> str:
    """The GGUF name of a published tensor; KeyError for one without."""
    plain = {theirs: ours for ours, theirs in _PLAIN.items()}
    if published in plain:
        return plain[published]
    match = _PUBLISHED_IN_LAYER.fullmatch(published)
    if match is None:
        raise KeyError(published)
    layer, part, suffix = match.groups()
    parts = {theirs: ours for ours, theirs in (_NORMS | _PROJECTIONS).items()}
    suffixes = {theirs: ours for ours, theirs in _SUFFIXES.items()}
    return f"blk.{layer}.{parts[part]}.{suffixes[suffix]}"
