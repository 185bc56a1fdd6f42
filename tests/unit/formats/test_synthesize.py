import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitnet.config import preset
from bitnet.errors import InputError
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.formats.safetensors import encode_header, file_order
from bitnet.formats.synthesize import synthesize
from bitnet.formats.tensor_names import expected_tensors, projections
from bitnet.load import load_model
from bitnet.quantize.packing import count_codes


@pytest.fixture(scope="module")
def shape():
    return replace(
        preset("2b4t"),
        vocab_size=300,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        bos_token_id=3,
        eos_token_id=(1, 2),
    )


@pytest.fixture(scope="module")
def wide(shape):
    """Wide enough for shares to be near their expectation."""
    return replace(shape, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=8)


@pytest.mark.parametrize(("mode", "size"), [("offline", 1_178_623_988), ("online", 4_825_679_400)])
def test_2b4t_has_the_published_size(mode, size):
    expected = expected_tensors(preset("2b4t").with_quantization(mode))
    shapes = {
        name: ("U8" if item.kind == "packed" else "BF16", item.shape) for name, item in expected.items()
    }
    _, total = encode_header(file_order(shapes), {"format": "pt"})
    assert total == size


def test_packed(shape, tmp_path):
    synthesize(shape, tmp_path / "model")
    model = read_checkpoint(tmp_path / "model")
    assert model.config == shape
    counts = np.sum([count_codes(model.linear(name).packed) for name in projections(shape)], axis=0)
    np.testing.assert_allclose(counts[:3] / counts.sum(), 1 / 3, atol=0.01)
    assert counts[3] == 0
    assert model.linear("model.layers.0.self_attn.q_proj").scale == 1.21875
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["eos_token_id"] == [1, 2]


def test_masters_quantise_to_trained_density(shape, tmp_path):
    synthesize(shape, tmp_path / "model", mode="online")
    model = read_checkpoint(tmp_path / "model")
    assert model.config.quantization.quantization_mode == "online"
    linear = model.linear("model.layers.1.mlp.down_proj")
    minus, zero, plus, _ = count_codes(linear.packed)
    assert zero / (minus + zero + plus) == pytest.approx(0.31, abs=0.02)
    assert linear.scale == pytest.approx(2.15625, rel=0.02)


def test_activations_stay_near_one(shape, tmp_path):
    """A norm followed by the projection that reads it neither grows nor shrinks the signal."""
    from bitnet.quantize.packing import unpack_2bit

    synthesize(shape, tmp_path / "model")
    model = read_checkpoint(tmp_path / "model")
    x = np.random.default_rng(0).standard_normal(192)
    linear = model.linear("model.layers.0.mlp.down_proj")
    y = (
        unpack_2bit(linear.packed)
        @ (x * model.tensor("model.layers.0.mlp.ffn_sub_norm.weight").float32())
        * linear.scale
    )
    assert 0.7 < y.std() < 1.4


def test_seed_decides(shape, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        synthesize(shape, tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert len(a) == len(c)


def test_bitlinear_stores_reciprocals(shape, tmp_path, as_bitlinear):
    synthesize(as_bitlinear(shape), tmp_path / "model")
    scale = read_checkpoint(tmp_path / "model").linear("model.layers.0.self_attn.v_proj").scale
    assert scale == pytest.approx(2.296875, rel=2**-8)


def test_odd_shapes(small, tmp_path):
    for mode in ("offline", "online"):
        synthesize(small, tmp_path / mode, mode=mode)
        assert read_checkpoint(tmp_path / mode).config == small.with_quantization(mode)


def test_an_existing_folder_is_kept(shape, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="exists already"):
        synthesize(shape, tmp_path)


def dead_shares(folder):
    """The share of gate outputs <= 0 in each layer over 48 random tokens, seen by the reference engine."""
    model = load_model(folder, "torch")
    network = next(part for part in vars(model).values() if isinstance(part, torch.nn.Module))
    shares = []
    for name, module in network.named_modules():
        if name.endswith("gate_proj"):
            module.register_forward_hook(lambda _, __, gate: shares.append((gate <= 0).float().mean().item()))
    ids = np.random.default_rng(0).integers(model.config.vocab_size, size=48)
    model.forward([(model.new_cache(48), ids.tolist())])
    return shares


@pytest.mark.parametrize("mode", ["offline", "online"])
@pytest.mark.parametrize("share", [0.3, 0.75, 0.9])
def test_dead_neurons_in_every_layer(wide, tmp_path, mode, share):
    synthesize(wide, tmp_path / "model", mode=mode, dead_neurons=share)
    shares = dead_shares(tmp_path / "model")
    assert len(shares) == wide.num_hidden_layers
    np.testing.assert_allclose(shares, share, atol=0.035)


def test_half_are_dead_unasked(wide, tmp_path):
    synthesize(wide, tmp_path / "model")
    np.testing.assert_allclose(dead_shares(tmp_path / "model"), 0.5, atol=0.035)


def test_dead_neurons_keep_the_density(wide, tmp_path):
    synthesize(wide, tmp_path / "model", dead_neurons=0.75)
    counts = count_codes(read_checkpoint(tmp_path / "model").linear("model.layers.1.mlp.gate_proj").packed)
    assert counts[1] / sum(counts) == pytest.approx(1 / 3, abs=0.01)
    assert counts[3] == 0


@pytest.mark.parametrize("share", [0, 1, -0.5, float("nan"), 1 - 1e-12])
def test_impossible_shares(wide, tmp_path, share):
    with pytest.raises(InputError, match="dead neurons"):
        synthesize(replace(wide, hidden_size=64), tmp_path / "model", dead_neurons=share)
    assert not (tmp_path / "model").exists()


def test_silu_kills_no_neuron(wide, tmp_path):
    with pytest.raises(InputError, match="relu2"):
        synthesize(replace(wide, hidden_act="silu"), tmp_path / "model", dead_neurons=0.75)
