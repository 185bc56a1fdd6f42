from dataclasses import replace

import pytest

from bitnet.config import preset
from bitnet.formats.safetensors import read_safetensors
from bitnet.formats.tensor_names import count_parameters, expected_tensors, norms, projections


@pytest.mark.parametrize("folder", ["packed_offline", "bf16_online"])
def test_names_and_shapes_are_those_transformers_writes(golden, folder):
    from bitnet.config import ModelConfig

    config = ModelConfig.from_file(golden / folder / "config.json")
    stored = read_safetensors(golden / folder / "model.safetensors")
    expected = expected_tensors(config)
    assert {name: tensor.shape for name, tensor in stored.items()} == {
        name: item.shape for name, item in expected.items()
    }


def test_2b4t():
    config = preset("2b4t")
    assert len(expected_tensors(config)) == 542
    assert count_parameters(config) == 2_412_820_480
    assert count_parameters(config.with_quantization("online")) == 2_412_820_480


def test_layers_come_in_order():
    config = preset("2b4t")
    assert list(projections(config))[:8] == [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.k_proj",
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.self_attn.o_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.down_proj",
        "model.layers.1.self_attn.q_proj",
    ]
    assert list(norms(config))[-1] == "model.norm.weight"


def test_odd_shapes(small):
    expected = expected_tensors(small)
    assert expected["model.layers.1.self_attn.q_proj.weight"].shape == (6, 12)
    assert expected["model.layers.1.self_attn.k_proj.weight"].shape == (2, 12)
    assert expected["model.layers.1.self_attn.o_proj.weight"].shape == (3, 24)
    assert expected["model.layers.1.self_attn.attn_sub_norm.weight"].shape == (24,)
    assert expected["model.layers.1.self_attn.k_proj.bias"].shape == (8,)
    assert expected["lm_head.weight"].shape == (20, 12)


def test_biases_follow_their_switch(small):
    only_mlp = expected_tensors(replace(small, attention_bias=False))
    assert "model.layers.0.mlp.up_proj.bias" in only_mlp
    assert "model.layers.0.self_attn.o_proj.bias" not in only_mlp
