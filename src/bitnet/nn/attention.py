"""Grouped-query causal attention; before the output projection a norm where norms are `pre-sub`.

    q, k, v = projections of x    q, k rotated    a = softmax(q kᵀ / √head_dim) v    y = o_proj(RMS(a))

Query head h reads key/value head h // (heads / kv_heads).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitnet.config import ModelConfig
from bitnet.nn.bitlinear import apply_together
from bitnet.nn.cache import KeyValueCache
from bitnet.nn.norm import RMSNorm, normalised
from bitnet.nn.projection import projection
from bitnet.nn.rotary import rotate


class Attention(nn.Module):
    """One layer's attention; `layer` is its index in the cache."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        hidden, bias = config.hidden_size, config.attention_bias
        self.q_proj = projection(config, "q_proj", hidden, config.query_size, bias)
        self.k_proj = projection(config, "k_proj", hidden, config.key_value_size, bias)
        self.v_proj = projection(config, "v_proj", hidden, config.key_value_size, bias)
        self.o_proj = projection(config, "o_proj", config.query_size, hidden, bias)
        sub_norm = config.quantization.sub_norms
        self.attn_sub_norm = RMSNorm(config.query_size, config.rms_norm_eps) if sub_norm else None
        self.head_dim = config.head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.layer = layer

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], cache: KeyValueCache | None = None) -> Tensor:
        """Attend from every new token to itself and all before it.

        Args:
            x: (batch, new, hidden_size).
            angles: of the new positions, `rotary_angles`.
            cache: what came before; batch is 1 then. Its new rows are written, its length is not moved.
        Returns:
            (batch, new, hidden_size).
        """
        heads = (*x.shape[:2], -1, self.head_dim)
        projected = apply_together(x, self.q_proj, self.k_proj, self.v_proj)
        queries, keys, values = (y.view(heads).transpose(1, 2) for y in projected)
        queries, keys = rotate(queries, *angles), rotate(keys, *angles)
        mask = None
        if cache is not None:
            keys, values = cache.extend(self.layer, keys, values)
            mask = _causal_mask(x.shape[1], keys.shape[2], x.device)
        attended = F.scaled_dot_product_attention(
            queries,
            keys.repeat_interleave(self.groups, dim=1),
            values.repeat_interleave(self.groups, dim=1),
            attn_mask=mask,
            is_causal=mask is None,
        )
        y: Tensor = self.o_proj(normalised(attended.transpose(1, 2).flatten(2), self.attn_sub_norm))
        return y


def _causal_mask(new: int, total: int, device: torch.device) -> Tensor:
    """(new, total), True where the new token at row i may look: columns 0 .. total-new+i."""
    return torch.ones(new, total, dtype=torch.bool, device=device).tril(total - new)
