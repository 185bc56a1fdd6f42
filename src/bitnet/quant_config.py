"""QuantConfig: what distinguishes one member of the BitNet line from another, in one place.

    variant    paper               weights  inputs of qkv / o / gate, up / down      norms      besides
    b1.58      2504.12285 (2B4T)   ternary  int8 everywhere                          pre-sub
    tips       2402.17764's FAQ    ternary  int8 everywhere                          linear
    pre        Falcon-E, HF1BitLLM ternary  int8 everywhere                          pre
    w1a8       2310.11453          binary   int8 everywhere                          linear     LayerNorm
    w1a1       XNOR                binary   one bit everywhere                       linear     LayerNorm
    a4.8       2411.04965          ternary  int4 / int8, largest half / int4 / int8  pre-sub
    a4.8-fp4   2411.04965          ternary  fp4 / fp4 / fp4 / int8                   pre-sub
    v2-a8      2504.18415          ternary  int8 everywhere                          pre-sub    Hadamard
    v2         2504.18415          ternary  int4 everywhere                          pre-sub    Hadamard

`bitnet.quantize` defines what the words compute. Stored in config.json's `quantization_config`: what
transformers knows by its names, everything else only where it departs from b1.58.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, get_args

from bitnet.errors import ConfigError, UnsupportedError

LinearClass = Literal["autobitlinear", "bitlinear"]
QuantizationMode = Literal["offline", "online"]
WeightKind = Literal["ternary", "binary"]
ScaleKind = Literal["tensor", "row", "group"]
InputKind = Literal["int8", "int8-top50", "int4", "fp4", "int1"]
Norms = Literal["pre-sub", "pre", "linear", "pre-linear"]
NormKind = Literal["rms", "layer"]
Rotation = Literal["none", "hadamard"]

# Which field of Inputs a projection reads; those of the second group are split along their inputs.
_INPUT_OF = {
    "q_proj": "qkv",
    "k_proj": "qkv",
    "v_proj": "qkv",
    "o_proj": "o",
    "gate_proj": "gate_up",
    "up_proj": "gate_up",
    "down_proj": "down",
}
_BEHIND_SUB_NORM = ("o_proj", "down_proj")


@dataclass(frozen=True)
class Inputs:
    """How the input of each group of projections is quantised, a token at a time."""

    qkv: InputKind = "int8"
    o: InputKind = "int8"
    gate_up: InputKind = "int8"
    down: InputKind = "int8"

    @classmethod
    def all(cls, kind: InputKind) -> Inputs:
        """The same everywhere."""
        return cls(kind, kind, kind, kind)


@dataclass(frozen=True)
class LinearRecipe:
    """What one projection computes; `bitnet.quantize.linear` defines it.

    Attributes:
        weights: codes -1, 0, +1 or -1, +1.
        row_groups: blocks of consecutive output rows, each with a scale of its own.
        column_groups: blocks of consecutive inputs, each a BitLinear of its own (norm, input scale, weight
            scale) whose products are added. One of the two is 1.
        inputs: how the input is quantised.
        rotate: whether a Hadamard transform precedes that.
        norm: of the input inside the layer, before the rotation; None: there is none.
        norm_eps: its epsilon.
    """

    weights: WeightKind = "ternary"
    row_groups: int = 1
    column_groups: int = 1
    inputs: InputKind = "int8"
    rotate: bool = False
    norm: NormKind | None = None
    norm_eps: float = 1e-6

    @property
    def scales(self) -> int:
        """How many weight scales there are."""
        return max(self.row_groups, self.column_groups)


@dataclass(frozen=True)
class QuantConfig:
    """How the projections are quantised and stored.

    Attributes:
        linear_class: `autobitlinear` multiplies by `weight_scale` = mean|W|; `bitlinear` divides by
            `weight_scale` = 1 / mean|W|. It decides the convention, nothing else does.
        quantization_mode: `offline` means packed codes on disk, `online` full-precision masters that are
            quantised in the forward pass.
        weights: ternary, 2 bits a weight on disk, or binary, 1 bit.
        scales: one a matrix, one an output row, or one a group (2310.11453, "group quantisation"):
            q, k, v, gate and up are split along their outputs, o and down along their inputs, so that each
            part can live on a device of its own.
        groups: how many, where `scales` is "group"; else 1.
        inputs: the activations' quantisers.
        norms: `pre-sub`, a norm before attention and feed-forward and one before o_proj and down_proj;
            `pre`, the former only; `linear`, none of them but one inside every projection;
            `pre-linear`, the former and one inside every projection (transformers' `use_rms_norm`).
        norm_kind: of the norms inside projections: RMSNorm, or LayerNorm without a bias.
        norm_eps: epsilon of the norms inside projections.
        rotation: `hadamard` turns the inputs of o_proj and down_proj (2504.18415).
        kv_bits: of cached keys and values: 16, or 8, 4 and 3 as 2411.04965 has them.
    Raises:
        ConfigError: a value is unknown, or contradicts another; the message gives the reason.
    """

    linear_class: LinearClass = "autobitlinear"
    quantization_mode: QuantizationMode = "offline"
    weights: WeightKind = "ternary"
    scales: ScaleKind = "tensor"
    groups: int = 1
    inputs: Inputs = field(default_factory=Inputs)
    norms: Norms = "pre-sub"
    norm_kind: NormKind = "rms"
    norm_eps: float = 1e-6
    rotation: Rotation = "none"
    kv_bits: int = 16

    def __post_init__(self) -> None:
        for key, choices in (
            ("linear_class", LinearClass),
            ("quantization_mode", QuantizationMode),
            ("weights", WeightKind),
            ("scales", ScaleKind),
            ("norms", Norms),
            ("norm_kind", NormKind),
            ("rotation", Rotation),
        ):
            _choose(key, getattr(self, key), get_args(choices))
        for item in fields(Inputs):
            _choose(f"inputs.{item.name}", getattr(self.inputs, item.name), get_args(InputKind))
        _choose("kv_bits", self.kv_bits, (16, 8, 4, 3))
        if type(self.groups) is not int or not 1 <= self.groups <= 1 << 16:
            raise ConfigError(f"groups is {self.groups!r}; it must be a positive whole number")
        if not isinstance(self.norm_eps, float) or not 1e-30 < self.norm_eps < 1:  # in float32 not 0
            raise ConfigError(f"norm_eps is {self.norm_eps!r}; it must lie between 1e-30 and 1")
        self._check_combination()

    def _check_combination(self) -> None:
        inside = self.norms in ("linear", "pre-linear")
        if (self.scales == "group") != (self.groups > 1):
            raise ConfigError(
                f"scales is {self.scales!r} and groups is {self.groups}; groups above 1 and scales 'group' "
                "go together"
            )
        if self.norm_kind == "layer" and not inside:
            raise ConfigError(
                f"norm_kind 'layer' is of norms inside projections, and norms {self.norms!r} has none; the "
                "others are RMSNorm"
            )
        if self.rotation == "hadamard" and self.norms == "pre":
            raise ConfigError(
                "rotation 'hadamard' follows a norm before o_proj and down_proj (arXiv 2504.18415); norms "
                "'pre' has none"
            )
        if self.rotation == "hadamard" and self.scales == "group":
            raise ConfigError(
                "rotation 'hadamard' mixes all inputs of o_proj and down_proj; scales 'group' keeps their "
                "parts apart"
            )
        if self.weights == "binary" and self.linear_class == "bitlinear":
            raise ConfigError("linear_class 'bitlinear' is a format of ternary weights; weights is 'binary'")
        if self.linear_class == "bitlinear" and self.quantization_mode == "online":
            raise ConfigError(
                "quantization_mode 'online' needs linear_class 'autobitlinear': bitlinear checkpoints are "
                "always packed"
            )

    def recipe(self, projection: str, rows: int) -> LinearRecipe:
        """What a projection computes.

        Args:
            projection: its name, or a path that ends with it: "model.layers.0.mlp.down_proj".
            rows: its output features.
        """
        name = projection.rpartition(".")[2]
        behind = name in _BEHIND_SUB_NORM
        row_groups = {"tensor": 1, "row": rows, "group": 1 if behind else self.groups}[self.scales]
        return LinearRecipe(
            weights=self.weights,
            row_groups=row_groups,
            column_groups=self.groups if behind else 1,
            inputs=getattr(self.inputs, _INPUT_OF[name]),
            rotate=behind and self.rotation == "hadamard",
            norm=self.norm_kind if self.norms in ("linear", "pre-linear") else None,
            norm_eps=self.norm_eps,
        )

    @property
    def pre_norms(self) -> bool:
        """Whether a norm stands before attention and one before the feed-forward layer."""
        return self.norms != "linear"

    @property
    def sub_norms(self) -> bool:
        """Whether a norm stands before o_proj and one before down_proj."""
        return self.norms == "pre-sub"

    @property
    def linear_norms(self) -> bool:
        """Whether every projection has a norm of its input inside."""
        return self.norms in ("linear", "pre-linear")

    @property
    def codes_a_byte(self) -> int:
        """Rows that share a byte of a packed weight."""
        return 8 if self.weights == "binary" else 4

    @property
    def is_plain(self) -> bool:
        """Whether it computes what 2B4T computes, wherever its norms stand."""
        return not [key for key in self.departures() if key != "norms"]

    def departures(self) -> dict[str, Any]:
        """What is not b1.58's, as the keys of `quantization_config`."""
        plain = QuantConfig(self.linear_class, self.quantization_mode)
        own = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if getattr(self, item.name) != getattr(plain, item.name)
        }
        if "inputs" in own:
            own["inputs"] = {
                name: kind
                for name, kind in asdict(self.inputs).items()
                if kind != getattr(plain.inputs, name)
            }
        return own

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str, model_type: str = "bitnet") -> QuantConfig:
        """Read `quantization_config`.

        Args:
            where: names the file in errors.
            model_type: of config.json; a `llama` has no sub-norms unless `norms` says so.
        Raises:
            ConfigError: a key is unknown, or a value impossible.
            UnsupportedError: another quantiser's block.
        """
        kept = dict(values)
        method = kept.pop("quant_method", None)
        if method != "bitnet":
            raise UnsupportedError(
                f"{where}: quantization_config.quant_method is {method!r}; this library reads 'bitnet'"
            )
        skipped = kept.pop("modules_to_not_convert", None)
        if skipped not in (None, [], ["lm_head"]):
            raise UnsupportedError(
                f"{where}: quantization_config.modules_to_not_convert is {skipped!r}; only 'lm_head' may "
                "stay unquantised"
            )
        kept.setdefault("linear_class", "bitlinear")  # transformers' default
        epsilon = kept.pop("rms_norm_eps", None)  # transformers writes it whether it is used or not
        inside = kept.pop("use_rms_norm", False)
        if not isinstance(inside, bool):
            raise ConfigError(
                f"{where}: quantization_config.use_rms_norm is {inside!r}; it must be true or false"
            )
        if "norms" not in kept:
            kept["norms"] = ("pre-linear" if inside else "pre") if model_type == "llama" else "pre-sub"
        if inside and kept["norms"] != "pre-linear":
            raise UnsupportedError(
                f"{where}: quantization_config.use_rms_norm is set, but norms are {kept['norms']!r}; with "
                "norms inside projections there are no sub-norms"
            )
        if epsilon is not None and kept["norms"] in ("linear", "pre-linear"):
            kept.setdefault("norm_eps", epsilon)
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(kept) - known)
        if unknown:
            raise ConfigError(
                f"{where}: quantization_config: unknown key {unknown[0]!r}; remove it if it does not change "
                "the model"
            )
        try:
            return cls(**kept | {"inputs": _read_inputs(kept.get("inputs", {}))})
        except (ConfigError, TypeError) as error:
            raise ConfigError(f"{where}: quantization_config.{error}") from None

    def to_dict(self) -> dict[str, Any]:
        """transformers' form, and behind it what departs from b1.58."""
        return {
            "quant_method": "bitnet",
            "linear_class": self.linear_class,
            "quantization_mode": self.quantization_mode,
        } | self.departures()

    def stored_as(self, mode: QuantizationMode) -> QuantConfig:
        """The same quantisers, `offline` packed or `online` masters, scales that multiply."""
        return replace(self, linear_class="autobitlinear", quantization_mode=mode)


def _choose(key: str, value: object, choices: tuple[object, ...]) -> None:
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ConfigError(f"{key} is {value!r}; known are {', '.join(map(str, choices))}")


def _read_inputs(values: object) -> Inputs:
    if isinstance(values, Inputs):
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(f"inputs is {values!r}; write an object with qkv, o, gate_up and down")
    unknown = sorted(set(values) - {item.name for item in fields(Inputs)})
    if unknown:
        raise ConfigError(f"inputs: unknown key {unknown[0]!r}; known are qkv, o, gate_up and down")
    return Inputs(**values)


VARIANTS: dict[str, QuantConfig] = {
    "b1.58": QuantConfig(),
    "tips": QuantConfig(norms="linear", norm_eps=1e-5),
    "pre": QuantConfig(norms="pre"),
    "w1a8": QuantConfig(weights="binary", norms="linear", norm_kind="layer", norm_eps=1e-5),
    "w1a1": QuantConfig(
        weights="binary", inputs=Inputs.all("int1"), norms="linear", norm_kind="layer", norm_eps=1e-5
    ),
    "a4.8": QuantConfig(inputs=Inputs(qkv="int4", o="int8-top50", gate_up="int4")),
    "a4.8-fp4": QuantConfig(inputs=Inputs(qkv="fp4", o="fp4", gate_up="fp4")),
    "v2-a8": QuantConfig(rotation="hadamard"),
    "v2": QuantConfig(inputs=Inputs.all("int4"), rotation="hadamard"),
}


def variant(name: str) -> QuantConfig:
    """The quantisers of a named variant.

    Raises:
        ConfigError: no variant has that name; the message lists them.
    """
    if name not in VARIANTS:
        raise ConfigError(f"unknown variant {name!r}; known are {', '.join(VARIANTS)}")
    return VARIANTS[name]
