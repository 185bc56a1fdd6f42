"""The decoder of the BitNet line, parameter names those on disk: Hugging Face's, for 2B4T exactly.

A layer:  x += attention(RMS(x));  x += feed_forward(RMS(x))       at the end RMS, then the head. The norms of
a layer stand where the configuration has them: here, before o_proj and down_proj, or inside projections.

The state dict of an online configuration is the checkpoint: loading and exporting are a copy of a dict.
The head is the embedding where they are tied; there is no `lm_head` key then.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bitnet.config import ModelConfig
from bitnet.nn.attention import Attention
from bitnet.nn.cache import KeyValueCache
from bitnet.nn.feed_forward import FeedForward
from bitnet.nn.norm import RMSNorm, normalised
from bitnet.nn.rotary import rotary_angles


class Layer(nn.Module):
    """Attention and feed-forward, each around a residual and behind its norm, if it has one."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        size, eps, pre_norms = config.hidden_size, config.rms_norm_eps, config.quantization.pre_norms
        self.input_layernorm = RMSNorm(size, eps) if pre_norms else None
        self.self_attn = Attention(config, index)
        self.post_attention_layernorm = RMSNorm(size, eps) if pre_norms else None
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, angles: tuple[Tensor, Tensor], cache: KeyValueCache | None) -> Tensor:
        """(batch, new, hidden_size) -> the same."""
        x = x + self.self_attn(normalised(x, self.input_layernorm), angles, cache)
        y: Tensor = x + self.mlp(normalised(x, self.post_attention_layernorm))
        return y


class Decoder(nn.Module):
    """Ids to normalised hidden states: everything but the head.

    Attributes:
        activation_checkpointing: keep only each layer's input for the backward pass, compute the rest again;
            in training mode only.
    """

    activation_checkpointing: bool = False

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.config = config

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """(batch, new) int64 -> (batch, new, hidden_size)."""
        start, new = 0 if cache is None else cache.length, ids.shape[1]
        angles = rotary_angles(self.config.head_dim, self.config.rope_theta, start, new, ids.device)
        x = self.embed_tokens(ids)
        in_training = self.training and torch.is_grad_enabled() and cache is None
        recompute = self.activation_checkpointing and in_training
        for layer in self.layers:
            x = (
                checkpoint(layer, x, angles, None, use_reentrant=False)
                if recompute
                else layer(x, angles, cache)
            )
        if cache is not None:
            cache.advance(new)
        y: Tensor = self.norm(x)
        return y


class Transformer(nn.Module):
    """The language model: decoder and head.

    An online configuration builds trainable `BitLinear` projections, an offline one `FrozenBitLinear`.
    Weights are drawn from normal(0, initializer_range) with torch's generator; norms are 1, biases 0.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.apply(self._initialise)

    def _initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    @property
    def head_weight(self) -> Tensor:
        """(vocab_size, hidden_size): the embedding where the head is tied to it."""
        return self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight

    def forward(self, ids: Tensor, cache: KeyValueCache | None = None, last_only: bool = False) -> Tensor:
        """Logits of new tokens.

        Args:
            ids: int64, (batch, new); batch is 1 with a cache.
            cache: what came before; the new tokens are appended to it.
            last_only: the head runs on the last token alone, new is 1 in the result.
        Returns:
            (batch, new, vocab_size).
        """
        hidden = self.model(ids, cache)
        return F.linear(hidden[:, -1:] if last_only else hidden, self.head_weight)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy in nats, in float32; ids and targets int64 (batch, length)."""
        return F.cross_entropy(self(ids).float().flatten(0, 1), targets.flatten())
