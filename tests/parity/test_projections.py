"""Projections of the cpu engine against the NumPy definition: every integer, and every bit of the floats."""

import importlib.util
import itertools
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from bitnet import _core
from bitnet.cpu_model import linear_arrays
from bitnet.formats.checkpoint import QuantizedLinear
from bitnet.quant_config import VARIANTS, InputKind, LinearRecipe, QuantConfig
from bitnet.quantize.linear import quantize_input, quantized_linear
from bitnet.quantize.packing import pack, pack_1bit
from bitnet.quantize.weights import quantize_weight

GOLDEN = Path(__file__).parents[1] / "golden"
GOLD = np.load(GOLDEN / "variants.npz")
GOLD_NAMES = sorted({name.split("/")[0] for name in GOLD.files} - {"x", "weight", "norm"})
KINDS = InputKind.__args__
RECIPES = {
    f"{name}/{projection}": config.recipe(projection, 48)
    for name, config in VARIANTS.items()
    for projection in ("q_proj", "o_proj", "gate_proj", "down_proj")
}
for weights in ("ternary", "binary"):
    RECIPES[f"{weights}/row"] = LinearRecipe(weights, row_groups=48)
    RECIPES[f"{weights}/row group"] = LinearRecipe(weights, row_groups=3, norm="rms")
    RECIPES[f"{weights}/column group"] = LinearRecipe(weights, column_groups=4, norm="layer", inputs="int4")
    RECIPES[f"{weights}/rotated"] = LinearRecipe(weights, rotate=True, norm="rms", inputs="int1")


def random_linear(recipe, rows, columns, seed=0, bias=False):
    """A projection: its codes, and what an engine gets."""
    random = np.random.default_rng(seed)
    codes, scales = quantize_weight(random.standard_normal((rows, columns)), recipe)
    norm = random.uniform(0.5, 2, columns).astype(np.float32) if recipe.norm else None
    return codes, QuantizedLinear(
        pack(codes, recipe.weights),
        scales,
        random.standard_normal(rows).astype(np.float32) if bias else None,
        norm,
        recipe,
    )


def golden_recipe(name):
    spec = importlib.util.spec_from_file_location("make_variants", GOLDEN / "make_variants.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return LinearRecipe(*module.RECIPES[name])


def run(x, linear, rows, isa, threads=1):
    return _core.run_projection(x, linear_arrays(linear), rows, isa, threads)


def assert_same_bits(found, expected):
    np.testing.assert_array_equal(found.view(np.uint32), expected.astype(np.float32).view(np.uint32))


def inputs(tokens, columns, seed=0):
    """Ordinary rows, one with outliers, tiny and huge ones, and zeros."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((tokens, columns)).astype(np.float32)
    x[1::5] *= np.where(random.random(columns) < 0.02, 100, 1)
    x[2::5] *= 1e-9
    x[3::5] = 0
    x[5::10] *= 1e17
    return x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("columns", [4, 63, 144, 1000, 2560])
def test_codes_and_scales_are_the_definition(kind, columns, isa):
    x = inputs(40, columns, seed=columns)
    x[9] = np.round(x[9])  # equal magnitudes, and ties
    for norm, rotate in itertools.product((None, "rms", "layer"), (False, True)):
        recipe = LinearRecipe(inputs=kind, norm=norm, rotate=rotate, norm_eps=1e-5)
        _, linear = random_linear(recipe, 4, columns)
        codes, scales, _ = run(x, linear, 4, isa)
        expected_codes, expected_scales = quantize_input(x, recipe, linear.norm_weight)
        np.testing.assert_array_equal(codes, expected_codes)
        assert_same_bits(scales, expected_scales)


@pytest.mark.parametrize("name", RECIPES)
def test_products_are_the_definition(name, isa):
    recipe = RECIPES[name]
    for tokens, columns, bias in ((1, 144, True), (5, 1000, False), (39, 320, True)):
        codes, linear = random_linear(recipe, 48, columns, seed=tokens, bias=bias)
        x = inputs(tokens, columns)
        found, _, y = run(x, linear, 48, isa)
        np.testing.assert_array_equal(found, quantize_input(x, recipe, linear.norm_weight)[0])
        _, expected = quantized_linear(x, codes, linear.scales, recipe, linear.norm_weight, linear.bias)
        assert_same_bits(y, expected)


@pytest.mark.parametrize("name", GOLD_NAMES)
def test_golden_vectors(name, isa):
    recipe, codes = golden_recipe(name), GOLD[f"{name}/codes"]
    norm = GOLD["norm"] if recipe.norm else None
    linear = QuantizedLinear(pack(codes, recipe.weights), GOLD[f"{name}/scales"], None, norm, recipe)
    found, scales, y = run(GOLD["x"], linear, len(codes), isa)
    np.testing.assert_array_equal(found, GOLD[f"{name}/x_codes"])
    np.testing.assert_allclose(scales, GOLD[f"{name}/x_scales"], rtol=1e-6)
    np.testing.assert_allclose(y, GOLD[f"{name}/y"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weights", ["ternary", "binary"])
@pytest.mark.parametrize("scales", ["tensor", "row", "group"])
def test_wide_layers_and_many_tokens(weights, scales, isa):
    """1,288 rows and 70 tokens: tables, and several tiles each way, on three threads."""
    config = QuantConfig(weights=weights, scales=scales, groups=2 if scales == "group" else 1)
    x = inputs(70, 264)
    for projection in ("q_proj", "down_proj"):
        recipe = config.recipe(projection, 1288)
        codes, linear = random_linear(recipe, 1288, 264, bias=True)
        _, _, y = run(x, linear, 1288, isa, threads=3)
        _, expected = quantized_linear(x, codes, linear.scales, recipe, None, linear.bias)
        assert_same_bits(y, expected)


@pytest.mark.parametrize("kind", ["int4", "fp4", "int1"])
def test_many_tokens_of_small_codes(kind, isa):
    """Tables with entries of a byte: 64 tokens, a rest of 18, and more columns than int16 sums hold."""
    recipe = LinearRecipe(inputs=kind)
    x = inputs(82, 2700)
    codes, linear = random_linear(recipe, 640, 2700)
    _, _, y = run(x, linear, 640, isa, threads=2)
    _, expected = quantized_linear(x, codes, linear.scales, recipe)
    assert_same_bits(y, expected)


@pytest.mark.parametrize("columns", [1, 127, 128, 900, 2176])
def test_signs_times_int8(columns, isa):
    random = np.random.default_rng(columns)
    codes = random.choice(np.array([-1, 1], np.int8), (24, columns))
    x = random.integers(-128, 128, (7, columns)).astype(np.int8)
    codes[0], x[0] = 1, -128
    found = _core.sign_matmul(x, pack_1bit(codes), isa)
    np.testing.assert_array_equal(found, x.astype(np.int32) @ codes.T.astype(np.int32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_becomes_nan_and_no_codes(kind, bad, isa):
    for norm, rotate in itertools.product((None, "rms", "layer"), (False, True)):
        recipe = LinearRecipe(inputs=kind, norm=norm, rotate=rotate)
        _, linear = random_linear(recipe, 8, 144)
        x = inputs(2, 144)
        x[0, 17] = bad
        codes, scales, y = run(x, linear, 8, isa)
        assert not codes[0].any()
        assert np.isnan(scales[0]).all()
        assert np.isnan(y[0]).all()
        assert np.isfinite(y[1]).all()


def test_what_does_not_fit_is_refused():
    _, linear = random_linear(LinearRecipe(row_groups=2), 8, 16)
    packed, scales, bias, norm, recipe = linear_arrays(linear)
    x = np.ones((1, 16), np.float32)
    for wrong in (
        (packed, scales[:1], bias, norm, recipe),
        (packed[:, :12], scales, bias, norm, recipe),
        (packed, scales, bias, norm, recipe | {"row_groups": 3}),
        (packed, scales, bias, norm, recipe | {"column_groups": 0}),
        (packed, scales, bias, norm, recipe | {"column_groups": 2}),
        (packed, scales, bias, norm, recipe | {"inputs": "int5"}),
        (packed, scales, bias, norm),
    ):
        with pytest.raises(ValueError, match=r"linear|inputs"):
            _core.run_projection(x, wrong, 8, "scalar", 1)


@pytest.mark.parametrize(("rows", "columns"), [(0, 16), (8, 0), (8, 2**22)])
def test_sizes_that_kernels_do_not_take_are_refused(rows, columns):
    recipe = asdict(LinearRecipe(inputs="int8-top50"))
    linear = np.zeros((rows // 4, columns), np.uint8), np.ones(1, np.float32), None, None, recipe
    with pytest.raises(ValueError, match=r"linear (is empty|has more columns)"):
        _core.run_projection(np.zeros((1, columns), np.float32), linear, rows, "scalar", 1)


def engine(recipes=(), embedding=None, **shape):
    """A model of one layer, all of whose widths are 8."""
    sizes = dict.fromkeys(["vocab_size", "hidden_size", "intermediate_size", "max_position_embeddings"], 8)
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 4}
    ones, table = np.ones(8, np.float32), np.ones((8, 8), np.float32)
    layer = dict.fromkeys(["input_norm", "post_attention_norm"], ones)
    layer |= dict.fromkeys(["attention_sub_norm", "feed_forward_sub_norm"])
    for name in ("query", "key", "value", "output", "gate", "up", "down"):
        _, linear = random_linear(dict(recipes).get(name, LinearRecipe()), 8, 8)
        layer[name] = linear_arrays(linear)
    return _core.Engine(
        shape=sizes | {"rms_norm_eps": 1e-5} | shape,
        hidden_act="relu2",
        kv_dtype="float16",
        head_type="full",
        embedding=table if embedding is None else embedding,
        head=table,
        final_norm=ones,
        rope_cos=np.ones((8, 2), np.float32),
        rope_sin=np.zeros((8, 2), np.float32),
        layers=[layer],
        threads=1,
        isa="scalar",
    )


@pytest.mark.parametrize("name", ["query", "key", "value", "gate", "up"])
@pytest.mark.parametrize("recipe", [LinearRecipe("binary"), LinearRecipe(column_groups=2)])
def test_layers_of_one_call_must_agree_on_their_input(name, recipe):
    with pytest.raises(ValueError, match="differ in recipe"):
        engine({name: recipe})


def test_one_token_of_gate_and_up_in_column_groups():
    """Few tokens look for dead neurons by rows, which are not whole here."""
    recipe = LinearRecipe(column_groups=2)
    model = engine(
        {"gate": recipe, "up": recipe}, np.random.default_rng(1).standard_normal((8, 8), np.float32)
    )
    tokens = np.arange(8, dtype=np.int32)[:, None]
    alone = [model.hidden_states(batch=[(model.new_cache(1), ids)]) for ids in tokens]
    together = model.hidden_states(batch=[(model.new_cache(1), ids) for ids in tokens])
    assert_same_bits(np.concatenate(alone), together)


@pytest.mark.parametrize(
    "shape",
    [
        {"num_key_value_heads": 0},
        {"num_attention_heads": 0, "num_key_value_heads": 0},
        {"num_attention_heads": 3},
        {"num_key_value_heads": 2**62 + 2},  # times head_dim, as 2
        {"head_dim": 0},
    ],
)
def test_impossible_heads_are_refused(shape):
    with pytest.raises(ValueError, match=r"must be in 1|multiple of"):
        engine(**shape)


def test_tables_are_used_in_place_or_refused():
    with pytest.raises(ValueError, match="embedding must be a matrix of uint16 or float32"):
        engine(embedding=np.ones((8, 8)))  # float64: converted, it would be gone when it is read
