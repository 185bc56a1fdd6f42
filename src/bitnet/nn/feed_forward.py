"""Gated feed-forward: down(RMS(act(gate(x)) · up(x))), act = relu² or silu (arXiv 2504.12285); the norm
where norms are `pre-sub`.

relu² keeps over 80 % of the down projection's input at zero. Its square leaves float16's range, so the
layer must not run in float16.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from bitnet.config import ModelConfig
from bitnet.nn.bitlinear import apply_together
from bitnet.nn.norm import RMSNorm, normalised
from bitnet.nn.projection import projection


class FeedForward(nn.Module):
    """The feed-forward half of a layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, wide, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = projection(config, "gate_proj", hidden, wide, bias)
        self.up_proj = projection(config, "up_proj", hidden, wide, bias)
        self.down_proj = projection(config, "down_proj", wide, hidden, bias)
        self.ffn_sub_norm = RMSNorm(wide, config.rms_norm_eps) if config.quantization.sub_norms else None
        self.squared_relu = config.hidden_act == "relu2"

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden_size) -> (..., hidden_size)."""
        gate, up = apply_together(x, self.gate_proj, self.up_proj)
        gate = F.relu(gate).square() if self.squared_relu else F.silu(gate)
        y: Tensor = self.down_proj(normalised(gate * up, self.ffn_sub_norm))
        return y
