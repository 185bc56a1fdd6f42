"""How loud the layers of a new model begin.

A norm before o_proj or down_proj gives its projection inputs of the size of the norm's weight, so each half
of a layer adds values of about 0.6 weight √n σ to the residual stream, n inputs and weights of deviation σ.
Embeddings begin with σ, too: with a weight of 1 the first layers already drown them, and a model learns
little before it has made these norms smaller (docs/variants.md has figures; in 2B4T they ended near 0.03).
With 1/√(2 L n) all 2 L halves together add somewhat less than the embedding, an idea of GPT-2's for weights.
"""

from __future__ import annotations

import math

import torch

from bitnet.nn import Transformer

_BRANCH_NORMS = (
    "attn_sub_norm",
    "ffn_sub_norm",
    *(f"{projection}.{kind}_norm" for projection in ("o_proj", "down_proj") for kind in ("rms", "layer")),
)


def quieten_branches(model: Transformer, weight: float | None) -> None:
    """Set the norms before o_proj and down_proj, wherever the variant has them.

    Args:
        weight: what all of them begin with; None: 1/√(2 L n), L layers, n the norm's width.
    """
    halves = 2 * model.config.num_hidden_layers
    for name, parameter in model.named_parameters():
        if name.removesuffix(".weight").endswith(_BRANCH_NORMS):
            value = 1 / math.sqrt(halves * parameter.numel()) if weight is None else weight
            with torch.no_grad():
                parameter.fill_(value)
