"""What a training run is: typed sections read from YAML, `--set a.b=c` on top, saved beside the run.

pydantic checks types, ranges and key names; every error names the key in the form that `--set` takes. A
resolved configuration says everything, so that a resume needs no flags and a later version's new defaults
change no old run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from reprlib import Repr
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from bitnet.config import ModelConfig, preset
from bitnet.errors import BitnetError, ConfigError
from bitnet.quant_config import QuantConfig, variant
from bitnet.train.yaml_file import read_yaml

CONFIG_FILE = "training.yaml"
Precision = Literal["auto", "float32", "bfloat16"]
RateRecipe = Literal["two-stage-linear", "two-stage-cosine", "linear", "cosine", "constant"]
CurveName = Literal["learning_rate", "weight_decay", "quantizer_strength", "activation_bits"]
DecayRecipe = Literal["two-stage", "two-stage-cosine", "constant"]

_STRICT = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
_MOST = 10**15  # beyond it floats no longer tell steps apart
_Count = Annotated[int, Field(ge=1, le=_MOST)]
_Length = Annotated[int, Field(ge=0, le=_MOST)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
_Share = Annotated[float, Field(gt=0, le=1)]
_Momentum = Annotated[float, Field(ge=0, lt=1)]


def _model(value: object) -> ModelConfig:
    """A `model` section: Hugging Face's keys, `preset` and `variant` for all that are not given."""
    if isinstance(value, ModelConfig):
        return value.with_quantization("online")
    if not isinstance(value, Mapping):
        raise ConfigError("write the model as keys, for example {preset: stories}")
    keys = dict(value)
    wrong = next((key for key in keys if not isinstance(key, str)), None)
    if wrong is not None:
        raise ConfigError(f"model: the key {wrong!r} is no text")
    name = keys.pop("preset", None)
    if name is not None and not isinstance(name, str):
        raise ConfigError(f"model.preset is {name!r}; write one name")
    base = {} if name is None else preset(name).to_dict()
    if "vocab_size" in keys:  # the preset's ids belong to its vocabulary; a run takes the tokenizer's
        for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
            base.pop(key, None)
    if "hidden_size" in keys and "head_dim" not in keys:
        base.pop("head_dim", None)  # the preset's belongs to the preset's width
    base.pop("model_type", None)  # the preset's belongs to the preset's quantisers
    default = QuantConfig() if name is None else preset(name).quantization
    keys["quantization_config"] = _quantization(
        keys.pop("variant", None), keys.get("quantization_config"), default
    )
    model = ModelConfig.from_dict(base | keys, "model")
    if model.quantization.quantization_mode != "online":
        raise ConfigError(
            "model.quantization_config.quantization_mode is 'offline'; training moves masters, leave it out"
        )
    return model


def _quantization(name: object, block: object, default: QuantConfig) -> Mapping[str, Any]:
    """The quantisers: a whole `quantization_config`, or its keys over those of a variant or the default."""
    if block is not None and not isinstance(block, Mapping):
        raise ConfigError(
            f"model.quantization_config is {block!r}; write its keys, for example {{groups: 2}}"
        )
    try:
        named = None if name is None else variant(str(name)).stored_as("online")
    except ConfigError as error:
        raise ConfigError(f"model.variant: {error}") from None
    if block is not None and "quant_method" in block:
        if named is not None and QuantConfig.from_dict(block, "model") != named:
            raise ConfigError(
                f"model.variant is {name!r}, but the whole model.quantization_config beside it says "
                "otherwise; remove one of them (on the command line: --set model.quantization_config=null)"
            )
        return block
    base = named or default.stored_as("online")
    return merge_quantization({"norms": base.norms} | base.to_dict(), block or {})


def merge_quantization(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A `quantization_config` with some keys changed, those of its `inputs` one by one."""
    merged = {**base, **changes}
    inputs = changes.get("inputs")
    if isinstance(inputs, Mapping):
        merged["inputs"] = {**base.get("inputs", {}), **inputs}
    return merged


Model = Annotated[ModelConfig, BeforeValidator(_model), PlainSerializer(lambda model: model.to_dict())]


@dataclass(frozen=True, config=_STRICT)
class DataSource:
    """A prepared folder or a text file, and how much of it is read.

    Attributes:
        path: a folder of `bitnet prepare`, or a file it could read.
        passes: how often it is read; 0.5 is a random half of it.
        until: its passes are spread over this first part (0..1) of the run's text; the rest of the text
            comes from the other sources.
    """

    path: str
    passes: Annotated[float, Field(gt=0, lt=1e6)] = 1.0
    until: _Share = 1.0

    @classmethod
    def parse(cls, text: str) -> DataSource:
        """Read `PATH`, `PATH:PASSES` or `PATH:PASSES@UNTIL`.

        Raises:
            ConfigError: what follows the last colon is no amount.
        """
        path, colon, amount = text.rpartition(":")
        if not colon or "/" in amount or "\\" in amount:
            return cls(text)
        passes, _, until = amount.partition("@")
        try:
            return cls(path, float(passes), float(until or 1))
        except ValueError:  # pydantic's error is one
            raise ConfigError(
                f"data {text!r}: {amount!r} is no amount; write PATH:PASSES or PATH:PASSES@UNTIL with PASSES "
                "above 0 and UNTIL in 0..1, for example stories.txt:3@0.5"
            ) from None


@dataclass(frozen=True, config=_STRICT)
class DataConfig:
    """Texts and their cut into batches.

    Attributes:
        sources: what is learned from.
        heldout: what is evaluated on, prepared folders (their validation split) or files.
        sequence_length: tokens of a window.
        batch_size: windows of an optimiser step, over all processes together.
        micro_batch_size: windows of one forward pass in one process; None: all of them at once.
    """

    sources: Annotated[tuple[DataSource, ...], Field(min_length=1)]
    heldout: tuple[str, ...] = ()
    sequence_length: _Count = 256
    batch_size: _Count = 8
    micro_batch_size: _Count | None = None

    @property
    def tokens_per_step(self) -> int:
        """Tokens an optimiser step learns from."""
        return self.batch_size * self.sequence_length


@dataclass(frozen=True, config=_STRICT)
class Stage:
    """A piece of a curve; positions are fractions (0..1) of the run.

    The shape runs from `start` at position `begin` to `end` at `finish`; the curve follows it up to `until`.
    Where `begin` and `finish` are None they are the ends of the piece itself.
    """

    until: _Share
    start: _Amount
    end: _Amount
    shape: Literal["linear", "cosine"] = "linear"
    begin: Annotated[float, Field(ge=0, lt=1)] | None = None
    finish: _Share | None = None


@dataclass(frozen=True, config=_STRICT)
class LearningRateConfig:
    """`recipe` gives the curve's shape (see schedule.py), the other keys its numbers.

    Attributes:
        peak: of the first stage.
        second_peak: of the second stage; None: two thirds of `peak`, the ratio of the papers.
        warmup: the rate rises linearly over so many first units; None: a fiftieth of the horizon.
    """

    recipe: RateRecipe = "two-stage-linear"
    peak: _Positive = 1.5e-3
    second_peak: _Positive | None = None
    warmup: _Length | None = None


@dataclass(frozen=True, config=_STRICT)
class WeightDecayConfig:
    """Decoupled weight decay of the matrices."""

    recipe: DecayRecipe = "two-stage"
    peak: Annotated[float, Field(ge=0, lt=1)] = 0.1


@dataclass(frozen=True, config=_STRICT)
class ScheduleConfig:
    """Every curve of the run; lengths are in `unit`s.

    Attributes:
        horizon: length of the run.
        switch: where (0..1) the second stage of the two-stage recipes begins.
        quantizer_warmup: λ of `w + λ(Q(w) − w)` rises from 0 to 1 over so many first units; 0: it is 1.
        low_bit_from: where (0..1) inputs begin to be quantised as the model says; before, all are int8.
            0: from the start.
        quantized: False trains plain `nn.Linear` layers, the baseline of comparisons.
        activation_bits: 8 for inputs that are quantised, 16 for those that are not; exported models always
            quantise.
        curves: pieces that replace a recipe, by name: learning_rate, weight_decay, quantizer_strength,
            activation_bits.
    """

    horizon: _Count
    unit: Literal["steps", "tokens"] = "steps"
    learning_rate: LearningRateConfig = field(default_factory=LearningRateConfig)
    weight_decay: WeightDecayConfig = field(default_factory=WeightDecayConfig)
    switch: Annotated[float, Field(gt=0, lt=1)] = 0.5
    quantizer_warmup: _Length = 0
    low_bit_from: Annotated[float, Field(ge=0, lt=1)] = 0.0
    quantized: bool = True
    activation_bits: Literal[8, 16] = 8
    curves: dict[CurveName, tuple[Stage, ...]] = field(default_factory=dict)


@dataclass(frozen=True, config=_STRICT)
class OptimizerConfig:
    """AdamW's constants and the largest norm a step's gradient keeps."""

    betas: tuple[_Momentum, _Momentum] = (0.9, 0.95)
    eps: _Positive = 1e-8
    clip: _Positive = 1.0


@dataclass(frozen=True, config=_STRICT)
class GuardConfig:
    """Which steps are skipped: always those with a loss or gradient that is not finite.

    Attributes:
        spike: and those whose gradient norm exceeds so many times its running mean; None: none of them.
        patience: so many bad steps in a row end the run.
    """

    spike: Annotated[float, Field(gt=1)] | None = None
    patience: _Count = 3


@dataclass(frozen=True, config=_STRICT)
class ComputeConfig:
    """How, not what: speed and memory.

    Attributes:
        precision: of the matrix products; masters and quantisers are float32. auto: bfloat16 where the
            hardware multiplies it.
        compile: torch.compile each layer (needs a C++ compiler).
        activation_checkpointing: keep only each layer's input for the backward pass.
    """

    precision: Precision = "float32"
    compile: bool = False
    activation_checkpointing: bool = False


@dataclass(frozen=True, config=_STRICT)
class ReportConfig:
    """Intervals in optimiser steps, and where the numbers go besides CSV and JSONL.

    Attributes:
        log_every: a row of metrics.
        evaluate_every: bits per byte of the held-out texts.
        evaluate_packed: also of the packed model on the CPU engine.
        codes_every: zero fraction and flip rate of every layer.
        save_every, keep: checkpoints, and how many of them stay.
    """

    log_every: _Count = 10
    evaluate_every: _Count = 250
    evaluate_packed: bool = True
    codes_every: _Count = 250
    save_every: _Count = 250
    keep: _Count = 2
    tensorboard: bool = False
    wandb: str | None = None


@dataclass(frozen=True, config=_STRICT)
class TrainingConfig:
    """Everything that decides a run's numbers, and how it reports.

    Attributes:
        model: the shape and the quantisers; `preset`, `variant` (`bitnet.quant_config`) and Hugging Face's
            keys, `quantization_config` among them.
        initial: a folder or Hub id of masters to continue from; None: random weights.
        branch_norm: what the norms before o_proj and down_proj of a new model begin with; None: 1/√(2 L n),
            L layers and n inputs, with which a deep model learns from its first steps (train/initial.py).
        seed: of initial weights and data order.
    Raises:
        ConfigError: values contradict each other; the message names them.
    """

    model: Model
    data: DataConfig
    schedule: ScheduleConfig
    initial: str | None = None
    branch_norm: _Positive | None = None
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    guard: GuardConfig = field(default_factory=GuardConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    def __post_init__(self) -> None:
        length, longest = self.data.sequence_length, self.model.max_position_embeddings
        if length > longest:
            raise ConfigError(
                f"data.sequence_length is {length}; the model's max_position_embeddings is {longest}"
            )
        if self.schedule.unit == "tokens" and self.schedule.horizon < self.data.tokens_per_step:
            raise ConfigError(
                f"schedule.horizon is {self.schedule.horizon} tokens, less than one step of "
                f"{self.data.tokens_per_step}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "training configuration") -> TrainingConfig:
        """Check plain values; `where` begins the error messages.

        Raises:
            ConfigError: a key is unknown or missing, or a value impossible; the message names the key.
        """
        try:
            return _ADAPTER.validate_python(values)
        except ValidationError as error:
            raise ConfigError(f"{where}: {_explain(error)}") from None
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `from_dict` takes."""
        values: dict[str, Any] = _ADAPTER.dump_python(self, mode="json")
        return values

    def save(self, path: Path) -> None:
        """Write as YAML, atomically."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> TrainingConfig:
        """Read what `save` wrote.

        Raises:
            FormatError: the file is missing or no YAML.
            ConfigError: a key is unknown or a value impossible.
        """
        return cls.from_dict(read_yaml(path), str(path))


_ADAPTER: TypeAdapter[TrainingConfig] = TypeAdapter(TrainingConfig)
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 120


def _explain(error: ValidationError) -> str:
    """The first problem, with its key as `--set` writes it."""
    problem = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in problem["loc"] if part != "function-before[_model()]")
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, BitnetError):
        return f"{key}: {cause}" if key and not str(cause).startswith(key) else str(cause)
    if problem["type"] == "unexpected_keyword_argument":
        return f"unknown key {key!r}"
    if problem["type"] in ("missing", "missing_argument"):
        return f"{key} is missing"
    return f"{key} is {_SHORT.repr(problem['input'])}: {problem['msg']}"
