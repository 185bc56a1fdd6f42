import json
from dataclasses import replace
from pathlib import Path

import pytest

from bitnet.config import PRESETS, ModelConfig, preset
from bitnet.errors import ConfigError, FormatError, UnsupportedError
from bitnet.quant_config import QuantConfig

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def sound():
    return json.loads((GOLDEN / "packed_offline" / "config.json").read_text())


def test_published_form(sound):
    config = ModelConfig.from_dict(sound)
    assert config == ModelConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=0,
        eos_token_id=(1,),
    )
    assert (config.head_dim, config.query_size, config.key_value_size) == (32, 256, 64)


def test_from_file():
    config = ModelConfig.from_file(GOLDEN / "bf16_online" / "config.json")
    assert config.quantization == QuantConfig("autobitlinear", "online")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_presets_survive_json(name, mode):
    config = preset(name).with_quantization(mode)
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_preset_lists_the_known():
    with pytest.raises(ConfigError, match=r"unknown preset '3t'; known are .*2b4t, stories"):
        preset("3t")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sliding_window": 128}, ConfigError, "unknown key 'sliding_window'"),
        (
            {"hidden_size": 254},
            ConfigError,
            "hidden_size 254 is not a multiple of num_attention_heads 8; set head_dim",
        ),
        (
            {"hidden_size": 258, "head_dim": 32},
            ConfigError,
            "hidden_size is 258; packed weights need a multiple of 4",
        ),
        ({"intermediate_size": 510}, ConfigError, "intermediate_size is 510; packed"),
        ({"head_dim": 33}, ConfigError, "head_dim 33 is odd"),
        ({"head_dim": -2}, ConfigError, "head_dim is -2"),
        (
            {"num_key_value_heads": 3},
            ConfigError,
            "num_attention_heads 8 is not a multiple of num_key_value_heads 3",
        ),
        ({"num_hidden_layers": 0}, ConfigError, "num_hidden_layers is 0; it must be a positive whole number"),
        ({"vocab_size": "512"}, ConfigError, "vocab_size is '512'"),
        ({"vocab_size": True}, ConfigError, "vocab_size is True"),
        ({"max_position_embeddings": 2.0}, ConfigError, r"max_position_embeddings is 2\.0"),
        ({"max_position_embeddings": 10**30}, ConfigError, "at most 16,777,216 are supported"),
        ({"hidden_act": "gelu"}, ConfigError, "hidden_act is 'gelu'; known are relu2, silu"),
        ({"rms_norm_eps": 0}, ConfigError, "rms_norm_eps is 0"),
        ({"rms_norm_eps": float("nan")}, ConfigError, "rms_norm_eps is nan"),
        ({"rms_norm_eps": 1e-50}, ConfigError, "rms_norm_eps is 1e-50"),  # 0 in float32
        ({"rope_theta": 10**400}, ConfigError, "rope_theta is 1000"),
        ({"rope_theta": float("inf")}, ConfigError, "rope_theta is inf"),
        ({"initializer_range": "small"}, ConfigError, "initializer_range is 'small'"),
        ({"tie_word_embeddings": 1}, ConfigError, "tie_word_embeddings is 1; it must be true or false"),
        ({"attention_bias": "no"}, ConfigError, "attention_bias is 'no'"),
        ({"bos_token_id": 512}, ConfigError, r"bos_token_id is 512; it must lie in 0\.\.511"),
        ({"eos_token_id": [1, -1]}, ConfigError, "eos_token_id is -1"),
        ({"pad_token_id": 1.0}, ConfigError, r"pad_token_id is 1\.0"),
        ({"model_type": "mamba"}, UnsupportedError, "model_type is 'mamba'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4}}, UnsupportedError, "rope_type is 'yarn'"),
        ({"rope_scaling": 2}, ConfigError, "rope_scaling is 2"),
        ({"rope_parameters": {"rope_type": "default", "factor": 4}}, ConfigError, "unknown key 'factor'"),
        (
            {"rope_parameters": {"rope_theta": 1e4}},
            ConfigError,
            "rope_theta 500000.0 contradicts rope_parameters",
        ),
    ],
)
def test_impossible_values_name_their_key(sound, changes, error, message):
    with pytest.raises(error, match=f"^here: .*{message}|^here: {message}"):
        ModelConfig.from_dict(sound | changes, "here")


@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "quantization_config",
    ],
)
def test_missing_keys_are_named(sound, key):
    del sound[key]
    with pytest.raises(ConfigError, match=f"here: {key} is missing"):
        ModelConfig.from_dict(sound, "here")


@pytest.mark.parametrize("key", ["hidden_act", "rms_norm_eps", "rope_theta", "tie_word_embeddings"])
def test_llama_must_say_what_transformers_would_default_otherwise(sound, key):
    sound["model_type"] = "llama"
    ModelConfig.from_dict(sound)
    del sound[key]
    with pytest.raises(ConfigError, match=f"here: {key} is missing"):
        ModelConfig.from_dict(sound, "here")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"quant_method": "gptq"}, UnsupportedError, "quant_method is 'gptq'"),
        ({"linear_class": "bitnetlinear"}, ConfigError, "linear_class is 'bitnetlinear'"),
        ({"quantization_mode": "offlin"}, ConfigError, "quantization_mode is 'offlin'"),
        ({"linear_class": "bitlinear", "quantization_mode": "online"}, ConfigError, "needs linear_class"),
        ({"use_rms_norm": True}, UnsupportedError, "use_rms_norm"),
        ({"modules_to_not_convert": ["q_proj"]}, UnsupportedError, "modules_to_not_convert"),
        ({"bits": 2}, ConfigError, "unknown key 'bits'"),
    ],
)
def test_quantization_keys(sound, changes, error, message):
    sound["quantization_config"] |= changes
    with pytest.raises(error, match=f"here: quantization_config.*{message}"):
        ModelConfig.from_dict(sound, "here")


def test_transformers_default_linear_class_is_bitlinear(sound):
    sound["quantization_config"] = {"quant_method": "bitnet"}
    assert ModelConfig.from_dict(sound).quantization == QuantConfig("bitlinear", "offline")


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        {"rope_theta": 1e4, "rope_scaling": None},
    ],
)
def test_rope_theta_of_either_generation(sound, rope):
    del sound["rope_theta"]
    assert ModelConfig.from_dict(sound | rope).rope_theta == 1e4


@pytest.mark.parametrize(("stored", "read"), [(None, ()), (5, (5,)), ([5, 6], (5, 6)), ([], ())])
def test_end_of_sequence_ids(sound, stored, read):
    config = ModelConfig.from_dict(sound | {"eos_token_id": stored})
    assert config.eos_token_id == read
    assert ModelConfig.from_dict(config.to_dict()) == config


def test_head_dim_beside_hidden_size(sound):
    config = ModelConfig.from_dict(sound | {"head_dim": 64})
    assert (config.query_size, config.key_value_size) == (512, 128)
    assert ModelConfig.from_dict(sound | {"head_dim": None}).head_dim == 32


def test_key_given_twice(tmp_path):
    (tmp_path / "config.json").write_text('{"vocab_size": 5, "vocab_size": 6}')
    with pytest.raises(FormatError, match="'vocab_size' stands there twice"):
        ModelConfig.from_file(tmp_path / "config.json")


def test_it_is_frozen():
    with pytest.raises(AttributeError):
        preset("2b4t").vocab_size = 1
    assert replace(preset("2b4t"), vocab_size=128260).vocab_size == 128260


def test_a_file_no_configuration_needs_is_not_parsed(sound, tmp_path):
    """Short lists take twenty times their text in memory."""
    path = tmp_path / "config.json"
    path.write_text(json.dumps(sound | {"architectures": ["x" * (1 << 20)]}))
    with pytest.raises(FormatError, match="larger than 1,048,576 bytes"):
        ModelConfig.from_file(path)
