"""The `torch` engine: the readable reference, float32, one sequence after another.

A packed checkpoint runs on its integer codes; masters are quantised anew in every
forward pass, as in training. What a sequence gets cannot depend on its company, because it has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from bitnet.config import ModelConfig
from bitnet.errors import InputError
from bitnet.formats.checkpoint import Checkpoint
from bitnet.generate.model import Cache
from bitnet.nn import FrozenBitLinear, KeyValueCache, Transformer
from bitnet.tokenizer import Tokenizer


class TorchModel:
    """A model that PyTorch runs on the CPU. `transformer` is the module itself, for looking inside."""

    def __init__(
        self, transformer: Transformer, tokenizer: Tokenizer | None, stop_tokens: frozenset[int]
    ) -> None:
        self.transformer = transformer
        self.tokenizer = tokenizer
        self.stop_tokens = stop_tokens

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, tokenizer: Tokenizer | None, threads: int | None = None
    ) -> TorchModel:
        """Build the modules and fill them.

        Args:
            threads: for the whole process, as PyTorch counts them; None leaves PyTorch's number.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        with torch.device("meta"):  # drawing initial weights for 2B4T would take minutes
            transformer = Transformer(checkpoint.config)
        transformer.load_state_dict(_state(checkpoint, transformer), assign=True)
        return cls(transformer.requires_grad_(False), tokenizer, checkpoint.stop_tokens)

    @property
    def config(self) -> ModelConfig:
        return self.transformer.config

    def new_cache(self, max_tokens: int) -> KeyValueCache:
        """An empty float32 cache; raises InputError outside 1..config.max_position_embeddings."""
        return KeyValueCache(self.config, max_tokens)

    def forward(
        self, batch: Sequence[tuple[Cache, Sequence[int]]], all_logits: bool = False
    ) -> list[NDArray[np.float32]]:
        """As `Model.forward`; the whole batch is checked before anything runs."""
        results = []
        with torch.inference_mode():
            for cache, ids in self._checked(batch):
                logits = self.transformer(ids, cache, last_only=not all_logits)[0]
                results.append((logits if all_logits else logits[0]).numpy())
        return results

    def hidden_states(self, batch: Sequence[tuple[Cache, Sequence[int]]]) -> list[NDArray[np.float32]]:
        """As `Model.hidden_states`; the whole batch is checked before anything runs."""
        with torch.inference_mode():
            return [self.transformer.model(ids, cache)[0].numpy() for cache, ids in self._checked(batch)]

    def _checked(
        self, batch: Sequence[tuple[Cache, Sequence[int]]]
    ) -> list[tuple[KeyValueCache, torch.Tensor]]:
        checked = [self._check(cache, ids) for cache, ids in batch]
        if len({id(cache) for cache, _ in checked}) < len(checked):
            raise InputError("a cache stands twice in one batch; give each sequence its own")
        return checked

    def _check(self, cache: Cache, ids: Sequence[int]) -> tuple[KeyValueCache, torch.Tensor]:
        """One sequence's cache and its ids as int64 (1, new)."""
        if not isinstance(cache, KeyValueCache) or cache.config != self.config:
            raise InputError(f"this {type(cache).__name__} is another model's; use this model's new_cache")
        array = np.asarray(ids)
        if array.ndim != 1 or array.size == 0:
            raise InputError("a sequence needs a flat list of at least one token id")
        if array.dtype.kind not in "iu":
            raise InputError("token ids must be whole numbers")
        outside = array[(array < 0) | (array >= self.config.vocab_size)]
        if outside.size:
            raise InputError(f"token id {outside[0]} is outside 0..{self.config.vocab_size - 1} (vocab_size)")
        if cache.length + array.size > cache.capacity:
            raise InputError(
                f"{array.size} tokens do not fit: the cache holds {cache.length} of {cache.capacity}"
            )
        return cache, torch.from_numpy(array.astype(np.int64))[None]


def _state(checkpoint: Checkpoint, transformer: Transformer) -> dict[str, torch.Tensor]:
    """The transformer's state dict: float32 as stored, packed projections as codes and scales."""
    state = {}
    frozen = {name for name, module in transformer.named_modules() if isinstance(module, FrozenBitLinear)}
    for name in frozen:
        linear = checkpoint.linear(name)
        state[f"{name}.codes"] = torch.from_numpy(linear.codes())
        state[f"{name}.scales"] = torch.tensor(linear.scales)
        if linear.bias is not None:
            state[f"{name}.bias"] = torch.from_numpy(linear.bias)
    for name, tensor in checkpoint.tensors.items():
        if name.rpartition(".")[0] not in frozen:
            state[name] = torch.from_numpy(tensor.float32())
    return state
