"""ModelConfig: the shape of a BitNet model, in Hugging Face's field names, and the presets.

A configuration is checked once, here: a key nobody knows and a value that contradicts another are errors
that name the key, because a silently dropped key is a wrong answer later. Keys that describe how
transformers would run the model (`torch_dtype`, `use_cache`, …) change nothing for us and are listed by
name in `_DESCRIPTIVE_KEYS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from bitnet.errors import ConfigError, UnsupportedError
from bitnet.json_file import CONFIG_BYTES, read_json_object
from bitnet.quant_config import QuantConfig, QuantizationMode, variant

# What transformers or a hub page stores beside the shape; none of it changes the forward pass.
_DESCRIPTIVE_KEYS = frozenset(
    {
        "_name_or_path",
        "architectures",
        "auto_map",
        "attention_dropout",
        "dtype",
        "model_type",
        "name_or_path",
        "pretraining_tp",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
# Ours for what transformers' classes would run as something else; it makes them refuse the folder.
_VARIANT = "bitnet-variant"
VARIANT_ARCHITECTURE = "BitNetVariant"
_MODEL_TYPES = ("bitnet", "bitnet-b1.58", "llama", _VARIANT)
_ACTIVATIONS = ("relu2", "silu")
MOST_POSITIONS = 1 << 24  # every position has a row in the tables of the rotary embedding


@dataclass(frozen=True)
class ModelConfig:
    """A BitNet decoder in LLaMA-3's layout; `quantization` says which of the line.

    Field names and meanings are Hugging Face's. Defaults exist only where transformers' files may leave
    the key out.

    Raises:
        ConfigError: a value is impossible or contradicts another; the message names the key.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    head_dim: int = 0  # 0: hidden_size / num_attention_heads, filled in below
    hidden_act: str = "relu2"
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    tie_word_embeddings: bool = True
    attention_bias: bool = False
    mlp_bias: bool = False
    initializer_range: float = 0.02
    bos_token_id: int | None = None
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    quantization: QuantConfig = field(default_factory=QuantConfig)

    def __post_init__(self) -> None:
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"):
            self._require_positive(key)
        for key in ("num_attention_heads", "num_key_value_heads", "max_position_embeddings"):
            self._require_positive(key)
        if self.max_position_embeddings > MOST_POSITIONS:
            raise ConfigError(
                f"max_position_embeddings is {self.max_position_embeddings}; at most {MOST_POSITIONS:,} are "
                "supported"
            )
        if self.head_dim == 0:
            if self.hidden_size % self.num_attention_heads:
                raise ConfigError(
                    f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                    f"{self.num_attention_heads}; set head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        self._require_positive("head_dim")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim {self.head_dim} is odd; rotary embeddings rotate pairs")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        self._check_widths()
        if self.hidden_act not in _ACTIVATIONS:
            raise ConfigError(f"hidden_act is {self.hidden_act!r}; known are {', '.join(_ACTIVATIONS)}")
        for key in ("rms_norm_eps", "rope_theta", "initializer_range"):
            value = getattr(self, key)
            # the engines compute in float32, whose range ends not far beyond either bound
            if not (_is_number(value) and 1e-30 < value < 1e30):
                raise ConfigError(f"{key} is {value!r}; it must be a number between 1e-30 and 1e30")
        for key in ("tie_word_embeddings", "attention_bias", "mlp_bias"):
            if not isinstance(getattr(self, key), bool):
                raise ConfigError(f"{key} is {getattr(self, key)!r}; it must be true or false")
        self._check_special_tokens()

    def _check_widths(self) -> None:
        together, groups = self.quantization.codes_a_byte, self.quantization.groups
        for key, width in (
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_attention_heads * head_dim", self.query_size),
            ("num_key_value_heads * head_dim", self.key_value_size),
        ):
            if width % together:
                raise ConfigError(f"{key} is {width}; packed weights need a multiple of {together}")
            if width % groups:
                raise ConfigError(f"{key} is {width}; it cannot be split into {groups} groups")

    def _require_positive(self, key: str) -> None:
        value = getattr(self, key)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise ConfigError(f"{key} is {value!r}; it must be a positive whole number")

    def _check_special_tokens(self) -> None:
        named = [("bos_token_id", self.bos_token_id), ("pad_token_id", self.pad_token_id)]
        for key, token in named + [("eos_token_id", token) for token in self.eos_token_id]:
            if token is None:
                continue
            if not isinstance(token, int) or isinstance(token, bool) or not 0 <= token < self.vocab_size:
                raise ConfigError(f"{key} is {token!r}; it must lie in 0..{self.vocab_size - 1} (vocab_size)")

    @property
    def query_size(self) -> int:
        """Width of the queries and of the attention output: heads * head_dim."""
        return self.num_attention_heads * self.head_dim

    @property
    def key_value_size(self) -> int:
        """Width of the keys and of the values: kv heads * head_dim."""
        return self.num_key_value_heads * self.head_dim

    @property
    def projection_shapes(self) -> dict[str, tuple[int, int]]:
        """The quantised matrices of a layer: name -> (out_features, in_features)."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "self_attn.q_proj": (self.query_size, hidden),
            "self_attn.k_proj": (self.key_value_size, hidden),
            "self_attn.v_proj": (self.key_value_size, hidden),
            "self_attn.o_proj": (hidden, self.query_size),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "config") -> ModelConfig:
        """Read the content of a Hugging Face `config.json`.

        Args:
            values: the parsed JSON object.
            where: what to call it in error messages, usually its path.
        Raises:
            ConfigError: a key is unknown, missing, impossible or contradictory.
            UnsupportedError: the quantisation or the position encoding is not implemented.
        """
        kept = {key: value for key, value in values.items() if key not in _DESCRIPTIVE_KEYS}
        model_type = values.get("model_type", "bitnet")
        if model_type not in _MODEL_TYPES:
            raise UnsupportedError(
                f"{where}: model_type is {model_type!r}; this library reads {', '.join(_MODEL_TYPES)}"
            )
        quantization = kept.pop("quantization_config", None)
        if not isinstance(quantization, Mapping):
            raise ConfigError(
                f"{where}: quantization_config is missing; without it nobody can tell how the weights are "
                "scaled. Add the block of the model the checkpoint was made from"
            )
        _merge_rope(kept, where)
        eos = kept.pop("eos_token_id", None)
        kept["eos_token_id"] = () if eos is None else tuple(eos) if isinstance(eos, list) else (eos,)
        if kept.get("head_dim") is None:
            kept.pop("head_dim", None)
        known = {item.name for item in fields(cls)} - {"quantization"}
        _refuse_unknown(kept, known, where)
        missing = [key for key in _REQUIRED if key not in kept]
        if model_type == "llama":  # transformers' defaults for these are not the ones above
            missing += [key for key in _DIFFERENT_IN_LLAMA if key not in kept]
        if missing:
            raise ConfigError(f"{where}: {missing[0]} is missing")
        try:
            return cls(**kept, quantization=QuantConfig.from_dict(quantization, where, model_type))
        except ConfigError as error:
            raise error if str(error).startswith(where) else ConfigError(f"{where}: {error}") from None

    @classmethod
    def from_file(cls, path: Path) -> ModelConfig:
        """Read a `config.json`.

        Raises:
            FormatError: the file is missing, no JSON object, or larger than any configuration.
            ConfigError, UnsupportedError: as `from_dict`.
        """
        return cls.from_dict(read_json_object(path, CONFIG_BYTES), str(path))

    def to_dict(self) -> dict[str, Any]:
        """The content of a `config.json` that transformers and this library read."""
        model_type, architecture = self._published_type()
        values: dict[str, Any] = {"architectures": [architecture], "model_type": model_type}
        for item in fields(self):
            if item.name != "quantization":
                values[item.name] = getattr(self, item.name)
        eos = self.eos_token_id
        values["eos_token_id"] = None if not eos else eos[0] if len(eos) == 1 else list(eos)
        values["torch_dtype"] = "bfloat16"
        values["quantization_config"] = self.quantization.to_dict()
        return values

    def _published_type(self) -> tuple[str, str]:
        """model_type and class by which transformers runs this model, or refuses it."""
        if self.quantization.is_plain and self.quantization.norms == "pre-sub":
            return "bitnet", "BitNetForCausalLM"
        if self.quantization.is_plain and self.quantization.norms == "pre" and self.hidden_act == "silu":
            return "llama", "LlamaForCausalLM"
        return _VARIANT, VARIANT_ARCHITECTURE

    def with_quantization(self, mode: QuantizationMode) -> ModelConfig:
        """The same model stored the other way: `offline` packed or `online` masters (autobitlinear)."""
        return replace(self, quantization=self.quantization.stored_as(mode))


_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
_DIFFERENT_IN_LLAMA = ("hidden_act", "rms_norm_eps", "rope_theta", "tie_word_embeddings")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse_unknown(values: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; remove it if it does not change the model")


def _merge_rope(values: dict[str, Any], where: str) -> None:
    """Fold transformers 5's `rope_parameters` and older `rope_scaling` into `rope_theta`."""
    for key in ("rope_parameters", "rope_scaling"):
        rope = values.pop(key, None)
        if rope is None:
            continue
        if not isinstance(rope, Mapping):
            raise ConfigError(f"{where}: {key} is {rope!r}; expected an object or null")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind != "default":
            raise UnsupportedError(f"{where}: {key}.rope_type is {kind!r}; only 'default' is implemented")
        _refuse_unknown(rope, {"rope_type", "type", "rope_theta"}, f"{where}: {key}")
        theta = rope.get("rope_theta")
        if theta is not None and values.setdefault("rope_theta", theta) != theta:
            raise ConfigError(
                f"{where}: rope_theta {values['rope_theta']} contradicts {key}.rope_theta {theta}"
            )


def _paper_size(hidden: int, intermediate: int, heads: int, layers: int) -> ModelConfig:
    """A size of arXiv 2402.17764's Training Tips (table 1): SwiGLU, LLaMA's vocabulary, sequences of 2,048.

    Norms stand where 2B4T has them, not inside every linear layer.
    """
    return ModelConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        hidden_act="silu",
        rope_theta=10000.0,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=(2,),
    )


def _one_bit_size(hidden: int, layers: int, heads: int) -> ModelConfig:
    """A size of arXiv 2310.11453 (table 2): binary weights, LayerNorm inside every projection, 16 K words.

    The paper's feed-forward has two matrices, hidden to 4 hidden and back; ours is gated and has three of
    8/3 hidden (rounded to 64), as many parameters.
    """
    return ModelConfig(
        vocab_size=16384,
        hidden_size=hidden,
        intermediate_size=round(hidden * 8 / 3 / 64) * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        rope_theta=10000.0,
        hidden_act="silu",
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=(2,),
        quantization=variant("w1a8"),
    )


PRESETS: dict[str, ModelConfig] = {
    "b1-125m": _one_bit_size(768, 12, 12),
    "b1-350m": _one_bit_size(1024, 24, 16),
    "b1-760m": _one_bit_size(1536, 24, 16),
    "b1-1.3b": _one_bit_size(2048, 24, 32),
    "b1-2.7b": _one_bit_size(2560, 32, 32),
    "b1-6.7b": _one_bit_size(4096, 32, 32),
    "b1-13b": _one_bit_size(5120, 40, 40),
    "b1-30b": _one_bit_size(7168, 48, 56),
    "b1.58-700m": _paper_size(1536, 4096, 24, 24),
    "b1.58-1.3b": _paper_size(2048, 5460, 32, 24),
    "b1.58-3b": _paper_size(3200, 8640, 32, 26),
    "b1.58-3.9b": _paper_size(3200, 12800, 32, 26),
    # microsoft/bitnet-b1.58-2B-4T (arXiv 2504.12285): 2,412,820,480 parameters
    "2b4t": ModelConfig(
        vocab_size=128256,
        hidden_size=2560,
        intermediate_size=6912,
        num_hidden_layers=30,
        num_attention_heads=20,
        num_key_value_heads=5,
        max_position_embeddings=4096,
        bos_token_id=128000,
        eos_token_id=(128001, 128009),
    ),
    # the embedded story model: 5.8 M parameters, 3.3 MB packed
    "stories": ModelConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rope_theta=10000.0,
        bos_token_id=0,
        eos_token_id=(0,),
    ),
}


def preset(name: str) -> ModelConfig:
    """The configuration of a named preset.

    Raises:
        ConfigError: no preset has that name; the message lists them.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    return PRESETS[name]
