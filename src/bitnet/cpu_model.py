"""The `cpu` engine: a checkpoint's arrays handed to the C++ forward pass (csrc/), and its caches.

Python keeps the files, names and messages; C++ gets arrays. The packed weights are repacked for streaming at
load; embedding and head are read in place from the memory-mapped file.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bitnet import _core
from bitnet.config import ModelConfig
from bitnet.errors import InputError
from bitnet.formats.checkpoint import Checkpoint, QuantizedLinear
from bitnet.formats.tensor import Tensor
from bitnet.generate.model import Cache
from bitnet.quantize.kv_cache import KvType
from bitnet.tokenizer import Tokenizer

_NORMS = {
    "input_norm": "input_layernorm",
    "attention_sub_norm": "self_attn.attn_sub_norm",
    "post_attention_norm": "post_attention_layernorm",
    "feed_forward_sub_norm": "mlp.ffn_sub_norm",
}
_LINEARS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


class CpuCache:
    """One sequence's keys and values in the engine's own layout."""

    def __init__(self, core: _core.KvCache) -> None:
        self.core = core

    @property
    def length(self) -> int:
        return self.core.length

    @property
    def capacity(self) -> int:
        return self.core.capacity

    @property
    def nbytes(self) -> int:
        """Bytes reserved; memory is taken as positions are reached."""
        return self.core.bytes

    def truncate(self, length: int) -> None:
        if not 0 <= length <= self.core.length:
            raise InputError(f"cannot truncate to {length} tokens: the cache holds {self.core.length}")
        self.core.truncate(length)


class CpuModel:
    """A model that the C++ engine runs.

    `forward` may be called from several threads; they take turns. A cache must not be truncated while a
    forward uses it.
    """

    def __init__(
        self,
        engine: _core.Engine,
        config: ModelConfig,
        tokenizer: Tokenizer | None,
        stop_tokens: frozenset[int],
    ) -> None:
        self._engine = engine
        self.config = config
        self.tokenizer = tokenizer
        self.stop_tokens = stop_tokens

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        tokenizer: Tokenizer | None,
        threads: int | None = None,
        kv_dtype: KvType = "auto",
        head: Literal["auto", "full", "shortlist"] = "auto",
        isa: str | None = None,
    ) -> CpuModel:
        """Hand the checkpoint's arrays to the engine.

        BITNET_PROFILE=1 prints the times of the forward's parts on stderr when the model goes.

        Args:
            threads: None takes BITNET_THREADS, and the number of physical cores where it is unset.
            kv_dtype: type of the cached keys and values. float16 halves the memory of float32 and rounds
                them; int8, int4 and int3 quantise them (bitnet.quantize.kv_cache). "auto" is what the
                configuration says (`kv_bits`): float16, unless the model was made for fewer bits.
            head: "full" computes every logit exactly. "shortlist" does so with `all_logits`, and for the last
                token computes the 64 largest exactly (so the greedy token and the top-k set up to 64 are the
                full head's) and the others from 4-bit weights. "auto" takes it where the head has more than
                2^24 weights: below that there is nothing to gain.
            isa: an instruction set by name; None takes BITNET_ISA, and the best one where it is unset.
        Raises:
            InputError: an unknown instruction set, kv_dtype or head, or an impossible number of threads.
        """
        config = checkpoint.config
        cos, sin = rope_tables(config)
        embedding = _table(checkpoint.tensor("model.embed_tokens.weight"))
        output = embedding if config.tie_word_embeddings else _table(checkpoint.tensor("lm_head.weight"))
        try:
            engine = _core.Engine(
                shape=_shape(config),
                hidden_act=config.hidden_act,
                kv_dtype=kv_type(kv_dtype, config),
                head_type=head_type(head, config),
                embedding=embedding,
                head=output,
                final_norm=checkpoint.tensor("model.norm.weight").float32(),
                rope_cos=cos,
                rope_sin=sin,
                layers=(_layer(checkpoint, index) for index in range(config.num_hidden_layers)),
                threads=thread_count(threads),
                isa=isa or "",
            )
        except ValueError as error:
            raise InputError(str(error)) from None
        model = cls(engine, config, tokenizer, checkpoint.stop_tokens)
        if os.environ.get("BITNET_PROFILE") == "1":
            weakref.finalize(model, _print_profile, engine)
        return model

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return self._engine.isa

    @property
    def threads(self) -> int:
        """Threads a forward runs on, the caller's included."""
        return self._engine.threads

    @property
    def live_shares(self) -> tuple[float, float] | None:
        """Mean shares of live `up` rows and live `down` columns over the tokens run in small batches."""
        return self._engine.live_shares()

    @property
    def profile(self) -> dict[str, float]:
        """Seconds spent in each part of the forward pass since loading."""
        return dict(self._engine.profile())

    def new_cache(self, max_tokens: int) -> CpuCache:
        if not 1 <= max_tokens <= self.config.max_position_embeddings:
            raise InputError(
                f"max_tokens is {max_tokens}; the model's context holds "
                f"1..{self.config.max_position_embeddings}"
            )
        return CpuCache(self._engine.new_cache(max_tokens))

    def forward(
        self, batch: Sequence[tuple[Cache, Sequence[int]]], all_logits: bool = False
    ) -> list[NDArray[np.float32]]:
        entries = self._entries(batch)
        if not entries:
            return []
        try:
            logits = self._engine.forward(batch=entries, all_logits=all_logits)
        except ValueError as error:
            raise InputError(str(error)) from None
        if not all_logits:
            return list(logits)
        return _split(logits, entries)

    def hidden_states(self, batch: Sequence[tuple[Cache, Sequence[int]]]) -> list[NDArray[np.float32]]:
        entries = self._entries(batch)
        if not entries:
            return []
        try:
            return _split(self._engine.hidden_states(batch=entries), entries)
        except ValueError as error:
            raise InputError(str(error)) from None

    def _entries(
        self, batch: Sequence[tuple[Cache, Sequence[int]]]
    ) -> list[tuple[_core.KvCache, NDArray[np.int32]]]:
        entries = []
        for cache, ids in batch:
            if not isinstance(cache, CpuCache):
                raise InputError(
                    f"a {type(cache).__name__} came with the cpu engine; use this model's new_cache"
                )
            entries.append((cache.core, _ids(ids, self.config.vocab_size)))
        return entries


def rope_tables(config: ModelConfig) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cosines and sines of the rotary embedding, float32 (max_position_embeddings, head_dim / 2).

    angle[p, i] = p / rope_theta^(2i / head_dim), computed in float32 as transformers does.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = np.float32(1.0) / np.float32(config.rope_theta) ** exponents
    positions = np.arange(config.max_position_embeddings, dtype=np.float32)
    angles = positions[:, None] * frequencies
    return np.cos(angles), np.sin(angles)


def _shape(config: ModelConfig) -> dict[str, int | float]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
    }


def _layer(checkpoint: Checkpoint, index: int) -> dict[str, object]:
    prefix = f"model.layers.{index}."
    arrays: dict[str, object] = {}
    for key, name in _NORMS.items():
        norm = checkpoint.tensors.get(f"{prefix}{name}.weight")  # not every variant has every norm
        arrays[key] = None if norm is None else norm.float32()
    for key, name in _LINEARS.items():
        arrays[key] = linear_arrays(checkpoint.linear(prefix + name))
    return arrays


def linear_arrays(linear: QuantizedLinear) -> tuple[object, ...]:
    """A projection as C++ reads it: packed codes, scales, bias, norm weight, recipe."""
    packed = np.ascontiguousarray(linear.packed)
    return packed, linear.scales, linear.bias, linear.norm_weight, asdict(linear.recipe)


def _table(tensor: Tensor) -> NDArray[np.uint16] | NDArray[np.float32]:
    """bfloat16 bits in place, anything else widened; aligned, which a file does not promise."""
    data = tensor.data if tensor.dtype == "BF16" else tensor.float32()
    return np.require(data, requirements=["C", "A"])


def _split(
    rows: NDArray[np.float32], entries: Sequence[tuple[_core.KvCache, NDArray[np.int32]]]
) -> list[NDArray[np.float32]]:
    """What each sequence gets of an array with a row a token."""
    ends = np.cumsum([len(ids) for _, ids in entries])
    return np.split(rows, ends[:-1])


def _ids(ids: Sequence[int], vocab_size: int) -> NDArray[np.int32]:
    try:
        array = np.asarray(ids)
    except (TypeError, ValueError, OverflowError):  # ragged
        raise InputError("a sequence needs a flat list of at least one token id") from None
    if array.ndim != 1 or array.size == 0:
        raise InputError("a sequence needs a flat list of at least one token id")
    if array.dtype.kind not in "iu":
        raise InputError("token ids must be whole numbers")
    outside = array[(array < 0) | (array >= vocab_size)]
    if outside.size:
        raise InputError(f"token id {outside[0]} is outside 0..{vocab_size - 1} (vocab_size)")
    return array.astype(np.int32)


def kv_type(kv_dtype: KvType, config: ModelConfig) -> KvType:
    """What `kv_dtype` means for a model: "auto" is float16, or the bits of its configuration."""
    if kv_dtype != "auto":
        return kv_dtype
    choices: dict[int, KvType] = {16: "float16", 8: "int8", 4: "int4", 3: "int3"}
    return choices[config.quantization.kv_bits]


def head_type(
    head: Literal["auto", "full", "shortlist"], config: ModelConfig
) -> Literal["full", "shortlist"]:
    """The head that `head` means for a model: "full" or "shortlist"; "auto" decides by its size."""
    if head != "auto":
        return head
    return "shortlist" if config.vocab_size * config.hidden_size > 1 << 24 else "full"


def thread_count(threads: int | None = None) -> int:
    """`threads`, or what BITNET_THREADS says, or the physical cores.

    Raises:
        InputError: BITNET_THREADS is no positive whole number.
    """
    if threads is not None:
        return threads
    variable = os.environ.get("BITNET_THREADS")
    if not variable:
        return _core.physical_cores()
    if not variable.isdecimal() or int(variable) == 0:
        raise InputError(f"BITNET_THREADS is {variable!r}; set a positive whole number or unset it")
    return int(variable)


def _print_profile(engine: _core.Engine) -> None:
    """BITNET_PROFILE=1: seconds by part of the forward pass on stderr, when the model goes."""
    parts = engine.profile()
    total = sum(seconds for _, seconds in parts)
    for name, seconds in parts:
        share = seconds / total if total else 0.0
        print(f"bitnet profile: {name:<10} {seconds:9.3f} s {share:6.1%}", file=sys.stderr)
