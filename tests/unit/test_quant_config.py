import json

import pytest

from bitnet.errors import ConfigError, UnsupportedError
from bitnet.quant_config import VARIANTS, Inputs, LinearRecipe, QuantConfig, variant

PLAIN = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_variants_survive_json(name, mode):
    config = variant(name).stored_as(mode)
    assert QuantConfig.from_dict(json.loads(json.dumps(config.to_dict())), "here") == config


def test_b158_is_written_in_transformers_words_alone():
    assert QuantConfig().to_dict() == PLAIN


def test_unknown_variant_lists_the_known():
    with pytest.raises(ConfigError, match=r"unknown variant 'b2'; known are b1\.58, .*v2"):
        variant("b2")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": "quaternary"}, "weights is 'quaternary'; known are ternary, binary"),
        ({"scales": "column"}, "scales is 'column'"),
        ({"inputs": {"qkv": "int2"}}, r"inputs\.qkv is 'int2'; known are int8"),
        ({"inputs": {"k": "int4"}}, "inputs: unknown key 'k'; known are qkv, o, gate_up and down"),
        ({"inputs": "int4"}, "inputs is 'int4'; write an object"),
        ({"norms": "post"}, "norms is 'post'"),
        ({"rotation": "givens"}, "rotation is 'givens'"),
        ({"kv_bits": 2}, "kv_bits is 2; known are 16, 8, 4, 3"),
        ({"kv_bits": 8.0}, r"kv_bits is 8\.0"),
        ({"groups": 0, "scales": "group"}, "groups is 0"),
        ({"groups": True}, "groups is True"),
        ({"scales": "group"}, "groups above 1 and scales 'group' go together"),
        ({"groups": 2}, "groups above 1 and scales 'group' go together"),
        ({"norm_kind": "layer"}, "norms 'pre-sub' has none"),
        ({"norm_eps": 0.0, "norms": "linear"}, r"norm_eps is 0\.0"),
        ({"norm_eps": 1e-50, "norms": "linear"}, "norm_eps is 1e-50"),  # 0 in float32
        ({"use_rms_norm": "false"}, "use_rms_norm is 'false'; it must be true or false"),
        ({"rotation": "hadamard", "norms": "pre"}, "norms 'pre' has none"),
        ({"rotation": "hadamard", "scales": "group", "groups": 2}, "mixes all inputs"),
        ({"weights": "binary", "linear_class": "bitlinear"}, "a format of ternary weights"),
        ({"group": 2}, "unknown key 'group'"),
    ],
)
def test_impossible_combinations_give_their_reason(values, message):
    with pytest.raises(ConfigError, match=rf"^here: quantization_config.*{message}"):
        QuantConfig.from_dict(PLAIN | values, "here")


def test_a_norm_inside_and_sub_norms():
    with pytest.raises(UnsupportedError, match="use_rms_norm is set, but norms are 'pre-sub'"):
        QuantConfig.from_dict(PLAIN | {"use_rms_norm": True}, "here")


def test_recipes_of_projections():
    config = QuantConfig(inputs=Inputs(qkv="int4", down="fp4"), scales="group", groups=4)
    assert config.recipe("model.layers.0.self_attn.q_proj", 64) == LinearRecipe(row_groups=4, inputs="int4")
    assert config.recipe("mlp.down_proj", 64) == LinearRecipe(column_groups=4, inputs="fp4")
    assert config.recipe("up_proj", 64).inputs == "int8"
    assert QuantConfig(scales="row").recipe("o_proj", 48).row_groups == 48
    rotated = variant("v2")
    assert [rotated.recipe(name, 8).rotate for name in ("q_proj", "o_proj", "up_proj", "down_proj")] == [
        False,
        True,
        False,
        True,
    ]
    assert variant("w1a8").recipe("k_proj", 8) == LinearRecipe("binary", norm="layer", norm_eps=1e-5)
