"""Configurations survive their file, take overrides, and refuse what is wrong by the key's name."""

import pytest

from bitnet.config import PRESETS
from bitnet.errors import ConfigError, FormatError
from bitnet.quant_config import VARIANTS, Inputs, QuantConfig
from bitnet.train.config import DataSource, TrainingConfig
from bitnet.train.yaml_file import override, read_yaml


def test_a_resolved_configuration_survives_its_file(tmp_path, config):
    config.save(tmp_path / "training.yaml")
    assert TrainingConfig.load(tmp_path / "training.yaml") == config


def test_a_preset_is_the_model_and_keys_change_it(values):
    config = TrainingConfig.from_dict(values | {"model": {"preset": "stories", "hidden_size": 128}})
    assert config.model.hidden_size == 128
    assert config.model.head_dim == 32
    assert config.model.intermediate_size == PRESETS["stories"].intermediate_size
    assert config.model.quantization.quantization_mode == "online"


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_names_the_quantisers_and_survives_the_file(tmp_path, values, name):
    config = TrainingConfig.from_dict(override(values, [f"model.variant={name}"]))
    assert config.model.quantization == VARIANTS[name].stored_as("online")
    config.save(tmp_path / "training.yaml")
    assert TrainingConfig.load(tmp_path / "training.yaml") == config
    again = TrainingConfig.from_dict(override(config.to_dict(), [f"model.variant={name}"]))
    assert again == config


def test_keys_of_the_quantisers_go_over_those_of_the_variant(values):
    changed = override(
        values,
        [
            "model.variant=a4.8",
            "model.quantization_config.inputs.o=int8",
            "model.quantization_config.kv_bits=4",
        ],
    )
    quantization = TrainingConfig.from_dict(changed).model.quantization
    assert quantization == QuantConfig(
        "autobitlinear", "online", inputs=Inputs("int4", "int8", "int4"), kv_bits=4
    )
    alone = override(values, ["model.quantization_config={scales: row}"])
    assert TrainingConfig.from_dict(alone).model.quantization.scales == "row"


def test_another_variant_is_not_mixed_into_a_resolved_file(values):
    resolved = TrainingConfig.from_dict(override(values, ["model.variant=v2"])).to_dict()
    with pytest.raises(ConfigError, match=r"model\.variant is 'a4\.8'.*quantization_config=null"):
        TrainingConfig.from_dict(override(resolved, ["model.variant=a4.8"]))
    changes = ["model.quantization_config=null", "model.variant=v2-a8"]
    config = TrainingConfig.from_dict(override(resolved, changes))
    assert config.model.quantization == VARIANTS["v2-a8"].stored_as("online")


def test_overrides_reach_nested_keys_and_keep_the_rest(values):
    changed = override(
        values, ["schedule.learning_rate.peak=1e-3", "data.batch_size=3", "compute.compile=true"]
    )
    config = TrainingConfig.from_dict(changed)
    assert config.schedule.learning_rate.peak == 0.001
    assert config.schedule.learning_rate.warmup == 3
    assert config.data.batch_size == 3
    assert config.compute.compile
    assert values["data"]["batch_size"] == 4


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("schedule.horizon=0", "schedule.horizon is 0"),
        ("data.batch_size=-1", "data.batch_size"),
        ("data.batch_size=many", "data.batch_size is 'many'"),
        ("schedule.learning_rate.peak=0", "schedule.learning_rate.peak"),
        ("schedule.learning_rate.peak=.inf", "schedule.learning_rate.peak"),
        ("schedule.switch=2", "schedule.switch"),
        ("schedule.learning_rate.recipe=magic", "schedule.learning_rate.recipe is 'magic'"),
        ("schedule.lerning_rate=1", "unknown key 'schedule.lerning_rate'"),
        ("nonsense=1", "unknown key 'nonsense'"),
        ("data.sources=[]", "data.sources"),
        ("data.sequence_length=65", "max_position_embeddings is 64"),
        ("model.hidden_sizes=32", "hidden_sizes"),
        ("model.hidden_act=gelu", "hidden_act is 'gelu'"),
        ("model={preset: 7b}", "unknown preset '7b'"),
        ("model=stories", "preset: stories"),
        ("schedule.activation_bits=5", "schedule.activation_bits"),
        ("schedule.low_bit_from=1", "schedule.low_bit_from"),
        ("schedule.low_bit_from=-0.1", "schedule.low_bit_from"),
        ("model.variant=b1.59", "model.variant: unknown variant 'b1.59'"),
        ("model.variant=[v2]", "model.variant: unknown variant"),
        ("model.quantization_config=v2", "model.quantization_config is 'v2'"),
        ("model.quantization_config.input=int4", "quantization_config: unknown key 'input'"),
        ("model.quantization_config.inputs.q=int4", "inputs: unknown key 'q'"),
        ("model.quantization_config.inputs=int4", "inputs is 'int4'"),
        ("model.quantization_config.quantization_mode=offline", "quantization_mode is 'offline'"),
        ("model.quantization_config={scales: group, groups: 5}", "cannot be split into 5 groups"),
        ("optimizer.betas=[0.9]", "optimizer.betas"),
        ("optimizer.betas=[0.9, 1]", "optimizer.betas.1"),
        ("seed=18446744073709551616", "seed"),
        ("schedule.switch=1", "schedule.switch"),
        (f"schedule.horizon=1{'0' * 400}", "schedule.horizon"),
        (f"seed={[0] * 9999}", "seed is [0, 0"),
        ("schedule.curves={learning_rate: [{until: 1, start: .nan, end: 0}]}", "learning_rate.0.start"),
        ("schedule.curves={weight_decay: [{until: 1, start: 0.1, end: -0.1}]}", "weight_decay.0.end"),
        ("schedule={horizon: 5, unit: tokens}", "less than one step"),
    ],
)
def test_impossible_values_are_refused_by_name(values, assignment, message):
    with pytest.raises(ConfigError) as caught:
        TrainingConfig.from_dict(override(values, [assignment]))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("key", ["model", "data", "schedule"])
def test_missing_sections_are_named(values, key):
    del values[key]
    with pytest.raises(ConfigError, match=key):
        TrainingConfig.from_dict(values)


@pytest.mark.parametrize(
    "assignment",
    [
        "horizon",
        "=1",
        "a..b=1",
        "schedule.horizon.x=1",
        "seed=[1",
        "seed=2020-13-45",
        "seed=!!int ''",
        "a=&x [*x]",
    ],
)
def test_malformed_overrides_are_refused(values, assignment):
    with pytest.raises(ConfigError, match="--set"):
        override(values, [assignment])


def test_an_empty_section_takes_overrides():
    assert override({"compute": None}, ["compute.compile=true"]) == {"compute": {"compile": True}}


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))


@pytest.mark.parametrize(
    "text",
    [
        "a: [1",
        "- 1\n- 2\n",
        "",
        "\x00",
        "[" * 5000,
        BOMB,
        "seed: 1\nseed: 2\n",
        "data: {path: a, path: b}",
        "seed: 2020-13-45",
        "seed: !!bool x",
        f"seed: {'1' * 5000}",
        "#" * (1 << 20) + "\nseed: 1",
    ],
)
def test_files_that_hold_no_keys_are_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(FormatError, match=r"c\.yaml"):
        read_yaml(tmp_path / "c.yaml")


def test_sources_are_read_from_short_text():
    assert DataSource.parse("a:b/c.txt") == DataSource("a:b/c.txt")
    assert DataSource.parse("c.txt:0.5@0.25") == DataSource("c.txt", 0.5, 0.25)
    for text in ("c.txt:x", "c.txt:1@2", "c.txt:0", "c.txt:-1", "c.txt:nan"):
        with pytest.raises(ConfigError, match="PASSES"):
            DataSource.parse(text)
