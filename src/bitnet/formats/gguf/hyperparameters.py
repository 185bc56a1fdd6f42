"""A model's shape as GGUF keys, and back. Every key begins with the architecture.

The architecture also decides the activation, which no key of llama.cpp names: `bitnet-b1.58` and `bitnet-25`
(bitnet.cpp) square a ReLU, `bitnet` (llama.cpp) has SiLU built in. A 2B4T that a converter labelled `bitnet`
is known by its shape. Files written here say it themselves, in `{architecture}.hidden_act`, which others
ignore.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bitnet.config import PRESETS, ModelConfig
from bitnet.errors import ConfigError, UnsupportedError
from bitnet.formats.gguf.container import Container
from bitnet.formats.gguf.container_writer import Writable
from bitnet.formats.gguf.metadata import Metadata
from bitnet.quant_config import QuantConfig

_ACTIVATION_OF = {"bitnet-b1.58": "relu2", "bitnet-25": "relu2", "bitnet": "silu"}
_ARCHITECTURE_FOR = {"relu2": "bitnet-b1.58", "silu": "bitnet"}
_REQUIRED = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
_KEY_VALUE_HEADS = "attention.head_count_kv"
_HEAD_DIM = ("attention.key_length", "attention.value_length", "rope.dimension_count")
_EPSILON, _THETA = "attention.layer_norm_rms_epsilon", "rope.freq_base"
_LLAMA_THETA = 10000.0  # llama.cpp's, where the key is absent
# what says nothing about the model's function here, or is checked below
_OTHER = {
    "vocab_size",
    "hidden_act",
    "i2_s_layout",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
    "attention.causal",
}
# id of the token under each key; the first three may end an answer
_EOS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
END_TOKENS = len(_EOS)
_BOS, _PAD = "tokenizer.ggml.bos_token_id", "tokenizer.ggml.padding_token_id"


def architecture(metadata: Metadata) -> str:
    """The file's architecture.

    Raises:
        ConfigError: it names none.
        UnsupportedError: it is not one of BitNet's.
    """
    name = metadata.text("general.architecture")
    if name is None:
        raise ConfigError(f"{metadata.where}: general.architecture is missing")
    if name not in _ACTIVATION_OF:
        raise UnsupportedError(
            f"{metadata.where}: general.architecture is {name[:60]!r}; readable are "
            f"{', '.join(_ACTIVATION_OF)}"
        )
    return name


def read_config(container: Container) -> ModelConfig:
    """The configuration that a file's keys and tensor names describe.

    Raises:
        ConfigError: a key is missing, impossible or contradictory.
        UnsupportedError: a key asks for what is not implemented.
    """
    metadata = container.metadata
    name = architecture(metadata)
    _refuse_unknown(metadata, name)
    values: dict[str, Any] = {
        field: metadata.required_integer(f"{name}.{key}") for field, key in _REQUIRED.items()
    }
    heads = metadata.integer(f"{name}.{_KEY_VALUE_HEADS}")
    values["num_key_value_heads"] = values["num_attention_heads"] if heads is None else heads
    values["head_dim"] = _read_head_dim(metadata, name)
    values["vocab_size"] = _read_vocab_size(container, name)
    for field, key in (("rms_norm_eps", _EPSILON), ("rope_theta", _THETA)):
        number = metadata.number(f"{name}.{key}")
        if number is not None:
            values[field] = number
    values.setdefault("rope_theta", _LLAMA_THETA)
    values["hidden_act"] = _read_activation(metadata, name, values)
    values["tie_word_embeddings"] = "output.weight" not in container.tensors
    values["attention_bias"] = "blk.0.attn_q.bias" in container.tensors
    values["mlp_bias"] = "blk.0.ffn_up.bias" in container.tensors
    values["bos_token_id"], values["pad_token_id"] = metadata.integer(_BOS), metadata.integer(_PAD)
    ends = [metadata.integer(key) for key in _EOS]
    values["eos_token_id"] = tuple(dict.fromkeys(token for token in ends if token is not None))
    try:
        return ModelConfig(**values, quantization=QuantConfig("autobitlinear", "offline"))
    except ConfigError as error:
        raise ConfigError(f"{metadata.where}: {error}") from None


def write_config(config: ModelConfig, ends: tuple[int, ...]) -> dict[str, Writable]:
    """The keys for a configuration, `general.architecture` first.

    Args:
        ends: ids that end an answer, the most important first; GGUF has places for three.
    """
    name = _ARCHITECTURE_FOR[config.hidden_act]
    values: dict[str, Writable] = {"general.architecture": name}
    values[f"{name}.vocab_size"] = config.vocab_size
    for field, key in _REQUIRED.items():
        values[f"{name}.{key}"] = getattr(config, field)
    values[f"{name}.{_KEY_VALUE_HEADS}"] = config.num_key_value_heads
    for key in _HEAD_DIM:
        values[f"{name}.{key}"] = config.head_dim
    values[f"{name}.{_EPSILON}"] = float(config.rms_norm_eps)
    values[f"{name}.{_THETA}"] = float(config.rope_theta)
    values[f"{name}.hidden_act"] = config.hidden_act
    named: Mapping[str, int | None] = {_BOS: config.bos_token_id, _PAD: config.pad_token_id}
    values |= {key: token for key, token in named.items() if token is not None}
    values |= dict(zip(_EOS, ends, strict=False))
    return values


def _refuse_unknown(metadata: Metadata, name: str) -> None:
    known = {*_REQUIRED.values(), _KEY_VALUE_HEADS, *_HEAD_DIM, _EPSILON, _THETA, *_OTHER}
    for key in metadata:
        if key.startswith(f"{name}.") and key.removeprefix(f"{name}.") not in known:
            raise UnsupportedError(
                f"{metadata.where}: {key} is not known here; it may change what the model computes"
            )
    kind, factor = metadata.text(f"{name}.rope.scaling.type"), metadata.number(f"{name}.rope.scaling.factor")
    if kind not in (None, "none") and not (kind == "linear" and factor in (None, 1.0)):
        raise UnsupportedError(
            f"{metadata.where}: {name}.rope.scaling.type is {kind[:60]!r} with factor {factor}; scaled "
            "rotary embeddings are not implemented"
        )


def _read_head_dim(metadata: Metadata, name: str) -> int:
    sizes = {key: metadata.integer(f"{name}.{key}") for key in _HEAD_DIM}
    given = {key: size for key, size in sizes.items() if size is not None}
    if len(set(given.values())) > 1:
        text = ", ".join(f"{name}.{key} {size}" for key, size in given.items())
        raise UnsupportedError(f"{metadata.where}: {text}; expected the same size for all")
    return next(iter(given.values()), 0)


def _read_vocab_size(container: Container, name: str) -> int:
    """Rows of the embedding, which the key must agree with where it is there."""
    metadata = container.metadata
    stated = metadata.integer(f"{name}.vocab_size")
    embedding = container.tensors.get("token_embd.weight")
    if embedding is None:
        raise ConfigError(f"{metadata.where}: the tensor token_embd.weight is missing")
    if stated is not None and stated != embedding.shape[0]:
        raise ConfigError(
            f"{metadata.where}: {name}.vocab_size is {stated}, but token_embd.weight has "
            f"{embedding.shape[0]} rows"
        )
    return embedding.shape[0]


def _read_activation(metadata: Metadata, name: str, values: Mapping[str, Any]) -> str:
    stated = metadata.text(f"{name}.hidden_act")
    if stated is not None:
        return stated[:60]
    known = PRESETS["2b4t"]
    shape = ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size")
    if all(values[field] == getattr(known, field) for field in shape):
        return known.hidden_act
    return _ACTIVATION_OF[name]
