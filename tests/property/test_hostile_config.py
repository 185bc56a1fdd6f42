"""Whatever JSON a config.json holds: a ModelConfig, or one clear BitnetError."""

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bitnet.config import ModelConfig
from bitnet.errors import BitnetError
from bitnet.json_file import parse_json_object

SOUND = json.loads((Path(__file__).parents[1] / "golden" / "packed_offline" / "config.json").read_text())
KEYS = [
    *SOUND,
    "head_dim",
    "attention_bias",
    "mlp_bias",
    "pad_token_id",
    "rope_parameters",
    "rope_scaling",
    "new",
]
QUANTIZATION_KEYS = [
    "quant_method",
    "linear_class",
    "quantization_mode",
    "use_rms_norm",
    "modules_to_not_convert",
    "x",
]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 600)
    | st.sampled_from(
        [2**31, 2**63, 10**400, 1e308, 5e-324, "default", "bitnet", "llama", "bitlinear", "online", "silu"]
    )
    | st.floats()
    | st.text(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["rope_type", "type", "rope_theta", *QUANTIZATION_KEYS]), inner, max_size=4
        )
    ),
    max_leaves=6,
)


def outcome(make):
    """What `make` returns, or the message of the BitnetError it raises."""
    try:
        return make()
    except BitnetError as error:
        return str(error)


@given(st.dictionaries(st.sampled_from(KEYS), values, max_size=3), st.sets(st.sampled_from(KEYS), max_size=2))
def test_changed_and_missing_keys(changes, removed):
    content = {key: value for key, value in (SOUND | changes).items() if key not in removed}
    config = outcome(lambda: ModelConfig.from_dict(content, "here"))
    if isinstance(config, str):
        assert config.startswith("here: ")
        assert "\n" not in config
    else:
        assert config.num_attention_heads % config.num_key_value_heads == 0
        assert ModelConfig.from_dict(config.to_dict()) == config


@given(st.dictionaries(st.sampled_from(QUANTIZATION_KEYS), values, max_size=4))
def test_quantization(changes):
    content = SOUND | {"quantization_config": SOUND["quantization_config"] | changes}
    config = outcome(lambda: ModelConfig.from_dict(content, "here"))
    if isinstance(config, str):
        assert "quantization_config" in config
    else:
        assert config.quantization.linear_class in ("autobitlinear", "bitlinear")
        assert config.quantization.quantization_mode in ("offline", "online")


@given(st.binary(max_size=60))
def test_random_bytes_are_no_object(content):
    values = outcome(lambda: parse_json_object(content, "here"))
    assert isinstance(values, dict) or values.startswith("here: ")
