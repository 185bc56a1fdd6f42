"""The cpu engine against Hugging Face's recorded outputs, on every instruction set of this CPU."""

import numpy as np
import pytest

import bitnet
from bitnet import _core
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.quantize.activations import quantize_int8
from bitnet.quantize.packing import pack_2bit, unpack_2bit


def test_kernels_equal_the_scalar_ones(isa):
    results = _core.self_test(isa)
    assert len(results) >= 9
    assert [row for row in results if not row[1]] == []


def test_activation_codes_equal_the_recorded_ones(golden, isa):
    ops = np.load(golden / "ops.npz")
    codes, scales = _core.quantize_int8(ops["X_bf16_as_f32"], isa)
    np.testing.assert_array_equal(codes, ops["bitlinear_act_int8_f32"])
    np.testing.assert_allclose(scales, ops["bitlinear_act_scale_f32"], rtol=1e-6)
    np.testing.assert_allclose(codes / scales, ops["aq_f32"], rtol=1e-5)


def test_activation_codes_equal_the_definition(isa):
    random = np.random.default_rng(0)
    for shape in [(3, 1), (5, 63), (2, 1000)]:
        x = random.normal(size=shape).astype(np.float32)
        codes, scales = _core.quantize_int8(x, isa)
        expected_codes, expected_scales = quantize_int8(x)
        np.testing.assert_array_equal(codes, expected_codes)
        np.testing.assert_array_equal(scales, expected_scales)


@pytest.mark.parametrize("columns", [1, 63, 128, 130, 448, 1000, 2560])
@pytest.mark.parametrize("tokens", [1, 3, 4, 7])
def test_integer_products_are_exact(isa, columns, tokens):
    random = np.random.default_rng(columns)
    codes = random.integers(-1, 2, (36, columns), dtype=np.int8)
    x = random.integers(-128, 128, (tokens, columns), dtype=np.int8)
    products = _core.ternary_matmul(x, pack_2bit(codes), isa)
    np.testing.assert_array_equal(products, x.astype(np.int32) @ codes.astype(np.int32).T)


def test_extreme_products_are_exact(isa):
    """All +1 against all -128: the largest sums there are, where narrow accumulators would wrap."""
    codes = np.ones((4, 6912), dtype=np.int8)
    x = np.full((2, 6912), -128, dtype=np.int8)
    assert (_core.ternary_matmul(x, pack_2bit(codes), isa) == -128 * 6912).all()


def test_first_layer_projections_match_the_trace(golden, golden_forward, isa):
    """The recorded inputs of layer 0's q, k, v, gate and up give the recorded outputs."""
    checkpoint = read_checkpoint(golden / "packed_offline")
    for source, names in [
        ("in_ln", ["self_attn.q", "self_attn.k", "self_attn.v"]),
        ("post_ln", ["mlp.gate", "mlp.up"]),
    ]:
        codes, scales = _core.quantize_int8(golden_forward[f"trace0_packed_offline_{source}"], isa)
        for name in names:
            linear = checkpoint.linear(f"model.layers.0.{name}_proj")
            found = _core.ternary_matmul(codes, linear.packed, isa) * (linear.scale / scales)
            expected = golden_forward[f"trace0_packed_offline_{name.split('.')[1]}"]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_safe_prompt_logits(golden, golden_forward, isa, checkpoint_name):
    model = bitnet.load_model(golden / checkpoint_name, isa=isa, kv_dtype="float32")
    ids = golden_forward["ids_safe"][0]
    (logits,) = model.forward([(model.new_cache(16), ids)], all_logits=True)
    np.testing.assert_allclose(
        logits, golden_forward[f"safe_logits_{checkpoint_name}_fp32"][0], atol=1e-4, rtol=0
    )


def test_long_prompts_stay_within_the_reach_of_int8_ties(golden, golden_forward, isa, checkpoint_name):
    """One flipped tie moves logits by hundredths; Hugging Face's own two attention paths differ by 0.041."""
    model = bitnet.load_model(golden / checkpoint_name, isa=isa, kv_dtype="float32")
    batch = [(model.new_cache(24), ids) for ids in golden_forward["input_ids"]]
    logits = np.stack(model.forward(batch, all_logits=True))
    expected = golden_forward[f"logits_{checkpoint_name}_fp32"]
    assert np.abs(logits - expected).max() < 0.3
    np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))


@pytest.mark.parametrize("kv_dtype", ["float32", "float16"])
def test_greedy_continuation(golden, golden_forward, isa, checkpoint_name, kv_dtype):
    model = bitnet.load_model(golden / checkpoint_name, isa=isa, kv_dtype=kv_dtype)
    expected = golden_forward[f"greedy_{checkpoint_name}"][0].tolist()
    ids, cache = expected[:8], model.new_cache(32)
    (logits,) = model.forward([(cache, ids)])
    while len(ids) < len(expected):
        ids.append(int(logits.argmax()))
        (logits,) = model.forward([(cache, ids[-1:])])
    assert ids == expected


def test_dividing_scales(golden, golden_forward, tmp_path):
    """The same codes under linear_class `bitlinear`, whose weight_scale divides."""
    import json

    from bitnet.formats.checkpoint import write_checkpoint
    from bitnet.formats.tensor import Tensor
    from bitnet.quantize.bfloat16 import narrow, widen

    source = read_checkpoint(golden / "packed_offline")
    tensors = dict(source.tensors)
    for name, tensor in source.tensors.items():
        if name.endswith("weight_scale"):
            tensors[name] = Tensor("BF16", tensor.shape, narrow(np.float32(1) / widen(tensor.data)))
    values = json.loads((golden / "packed_offline" / "config.json").read_text())
    values["quantization_config"]["linear_class"] = "bitlinear"
    config = bitnet.ModelConfig.from_dict(values)
    write_checkpoint(tmp_path / "dividing", config, tensors)
    model = bitnet.load_model(tmp_path / "dividing", kv_dtype="float32")
    batch = [(model.new_cache(24), ids) for ids in golden_forward["input_ids"]]
    logits = np.stack(model.forward(batch, all_logits=True))
    expected = golden_forward["logits_bitlinear_fp32"]
    assert np.abs(logits - expected).max() < 0.3
    np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))


def test_repacking_keeps_every_code(golden):
    """A product with unit vectors reads the codes back from the engine's own layout."""
    linear = read_checkpoint(golden / "packed_offline").linear("model.layers.1.mlp.down_proj")
    units = np.eye(linear.packed.shape[1], dtype=np.int8)
    np.testing.assert_array_equal(
        _core.ternary_matmul(units, linear.packed, "scalar").T, unpack_2bit(linear.packed)
    )
