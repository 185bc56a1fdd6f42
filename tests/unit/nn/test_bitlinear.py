"""BitLinear of every recipe: outputs and gradients against the textbook form."""

import pytest
import torch
from torch import nn

from bitnet.errors import InputError
from bitnet.nn import BitLinear, FrozenBitLinear
from bitnet.nn.bitlinear import apply_together, set_quantization
from bitnet.nn.quantizers import int8_codes, ternary_codes
from bitnet.nn.textbook import bit_linear_by_detach
from bitnet.quant_config import LinearRecipe

RECIPES = {
    "b1.58": LinearRecipe(),
    "rows": LinearRecipe(row_groups=12),
    "row groups, a norm": LinearRecipe(row_groups=3, norm="rms"),
    "column groups": LinearRecipe(column_groups=3),
    "column groups, a norm": LinearRecipe(column_groups=3, norm="layer", inputs="int4"),
    "int4": LinearRecipe(inputs="int4"),
    "the largest half": LinearRecipe(inputs="int8-top50"),
    "fp4": LinearRecipe(inputs="fp4"),
    "Hadamard": LinearRecipe(inputs="int4", rotate=True),
    "Hadamard behind a norm": LinearRecipe(rotate=True, norm="rms"),
    "w1a8": LinearRecipe("binary", norm="layer"),
    "w1a1": LinearRecipe("binary", inputs="int1", norm="layer"),
    "binary column groups": LinearRecipe("binary", column_groups=3, norm="layer"),
    "binary rows": LinearRecipe("binary", row_groups=12),
}


def jiggle(layer):
    """Weights of a norm and masters that are not symmetric, so that each counts."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1 + 0.03)
    return layer


@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("shape", [(18,), (3, 18), (2, 5, 18)])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_every_recipe_equals_its_textbook_form(recipe, shape, strength):
    torch.manual_seed(0)
    layer = jiggle(BitLinear(18, 12, recipe=recipe))
    set_quantization(layer, strength)
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    y.square().sum().backward()
    names = [name for name, _ in layer.named_parameters()]
    twins = {name: value.detach().clone().requires_grad_() for name, value in layer.named_parameters()}
    norm_weight = twins.get(f"{recipe.norm}_norm.weight")
    assert (norm_weight is not None) == (recipe.norm is not None)
    x_twin = x.detach().clone().requires_grad_()
    y_twin = bit_linear_by_detach(x_twin, twins["weight"], twins["bias"], recipe, norm_weight, strength)
    y_twin.square().sum().backward()
    torch.testing.assert_close(y, y_twin)
    torch.testing.assert_close(x.grad, x_twin.grad, rtol=1e-4, atol=1e-5)
    for name in names:
        torch.testing.assert_close(layer.get_parameter(name).grad, twins[name].grad, rtol=1e-4, atol=1e-4)


def test_a_mask_lets_gradients_pass_to_what_it_dropped():
    layer = BitLinear(8, 4, recipe=LinearRecipe(inputs="int8-top50"))
    x = torch.arange(8.0).requires_grad_()
    layer(x).sum().backward()
    codes, scale = ternary_codes(layer.weight.detach())
    torch.testing.assert_close(x.grad, (codes * scale).sum(0))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_no_strength_leaves_norm_and_rotation(recipe):
    """A run that lets its quantisers in slowly begins as the full-precision model of the same weights."""
    torch.manual_seed(0)
    layer = jiggle(BitLinear(18, 12, recipe=recipe))
    set_quantization(layer, 0.0)
    x = torch.randn(3, 18)
    norm_weight = layer.get_parameter(f"{recipe.norm}_norm.weight") if recipe.norm else None
    plain = bit_linear_by_detach(x, layer.weight, layer.bias, recipe, norm_weight, 0.0)
    torch.testing.assert_close(layer(x), plain)


def test_the_first_of_two_stages_has_int8_inputs_everywhere():
    torch.manual_seed(0)
    x = torch.randn(3, 16)
    for kind in ("int4", "int8-top50", "fp4", "int1"):
        layer = BitLinear(16, 8, recipe=LinearRecipe(inputs=kind))
        plain = BitLinear(16, 8)
        plain.load_state_dict(layer.state_dict())
        set_quantization(layer, 1.0, low_bit=False)
        assert torch.equal(layer(x), plain(x))
        set_quantization(layer, 1.0)
        assert not torch.equal(layer(x), plain(x))
        set_quantization(layer, 1.0, 16, low_bit=False)
        set_quantization(plain, 1.0, 16)
        assert torch.equal(layer(x), plain(x))


def test_impossible_groups_are_refused():
    for recipe in (LinearRecipe(row_groups=5), LinearRecipe(column_groups=4)):
        for kind in (BitLinear, FrozenBitLinear):
            with pytest.raises(InputError, match="cannot be split"):
                kind(18, 12, recipe=recipe)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 5, 7)])
def test_outputs_and_gradients_equal_the_textbook_form(bias, shape):
    torch.manual_seed(0)
    layer = BitLinear(7, 6, bias=bias)
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    y.square().sum().backward()

    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    x_twin = x.detach().clone().requires_grad_()
    y_twin = bit_linear_by_detach(x_twin, *parameters)
    y_twin.square().sum().backward()
    torch.testing.assert_close(y, y_twin)
    torch.testing.assert_close(x.grad, x_twin.grad)
    for parameter, twin in zip(layer.parameters(), parameters, strict=True):
        torch.testing.assert_close(parameter.grad, twin.grad)


def test_gradients_pass_through_without_a_clamp_mask():
    """A weight far outside ±scale still learns."""
    layer = BitLinear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[100.0, 0.1, 0.1, 0.1]])
    layer(torch.ones(4)).sum().backward()
    torch.testing.assert_close(layer.weight.grad, torch.ones(1, 4))


def test_is_a_drop_in_for_linear():
    plain = nn.Linear(12, 8, bias=True, dtype=torch.float32)
    layer = BitLinear(12, 8, bias=True, dtype=torch.float32)
    layer.load_state_dict(plain.state_dict())
    assert isinstance(layer, nn.Linear)
    assert layer.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(3, 5, 12)
    assert layer(x).shape == plain(x).shape
    codes, scale = ternary_codes(plain.weight)
    x_codes, s = int8_codes(x)
    torch.testing.assert_close(layer(x), (x_codes / s) @ (codes * scale).T + plain.bias)


def test_bfloat16_products_keep_three_weight_values_and_float32_masters():
    torch.manual_seed(1)
    layer = BitLinear(64, 64, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        # one-hot rows read the quantised weight out through the layer itself
        y = layer(torch.eye(64))
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert len(y.unique()) == 3
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32
    torch.testing.assert_close(y.float().sign(), ternary_codes(layer.weight)[0].T)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize("shape", [(65,), (3, 65), (2, 5, 65)])
def test_a_quantiser_let_in_slowly_equals_its_formula(strength, activation_bits, shape):
    torch.manual_seed(3)
    layer = BitLinear(65, 63)
    set_quantization(layer, strength, activation_bits)
    x = torch.randn(shape, requires_grad=True)
    y = layer(x)
    y.square().sum().backward()

    weight, bias = (p.detach().clone().requires_grad_() for p in layer.parameters())
    x_twin = x.detach().clone().requires_grad_()
    y_twin = bit_linear_by_detach(
        x_twin, weight, bias, strength=strength, quantise_input=activation_bits == 8
    )
    y_twin.square().sum().backward()
    torch.testing.assert_close(y, y_twin)
    torch.testing.assert_close(x.grad, x_twin.grad)
    torch.testing.assert_close(layer.weight.grad, weight.grad)
    torch.testing.assert_close(layer.bias.grad, bias.grad)


def test_no_strength_is_linear_to_the_bit():
    layer, plain = BitLinear(65, 63), nn.Linear(65, 63)
    plain.load_state_dict(layer.state_dict())
    set_quantization(layer, 0.0, 16)
    x = torch.randn(3, 65)
    assert torch.equal(layer(x), plain(x))


def test_layers_applied_together_equal_themselves_one_by_one():
    torch.manual_seed(4)
    layers = [BitLinear(33, rows, bias=rows > 20) for rows in (40, 20, 21)]
    x = torch.randn(2, 5, 33, requires_grad=True)
    together = apply_together(x, *layers)
    sum(y.square().sum() for y in together).backward()
    gradients = [x.grad, *(layer.weight.grad for layer in layers)]
    x.grad = None
    for layer in layers:
        layer.zero_grad()
    alone = [layer(x) for layer in layers]
    sum(y.square().sum() for y in alone).backward()
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(gradients, [x.grad, *(layer.weight.grad for layer in layers)], strict=True):
        torch.testing.assert_close(one, other)


def test_layers_that_share_an_input_may_differ_in_their_weights():
    torch.manual_seed(4)
    recipes = [LinearRecipe(row_groups=6), LinearRecipe("binary"), LinearRecipe(row_groups=2)]
    layers = [BitLinear(33, 6, recipe=recipe) for recipe in recipes]
    x = torch.randn(5, 33)
    for one, layer in zip(apply_together(x, *layers), layers, strict=True):
        assert torch.equal(one, layer(x))


def test_frozen_weights_still_pass_gradients_to_the_input():
    layer = BitLinear(8, 4)
    layer.weight.requires_grad_(False)
    x = torch.randn(3, 8, requires_grad=True)
    layer(x).sum().backward()
    assert layer.weight.grad is None
    codes, scale = ternary_codes(layer.weight)
    torch.testing.assert_close(x.grad, (codes * scale).sum(0).expand(3, 8))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_bfloat16_autocast_stays_near_the_float32_form(strength):
    torch.manual_seed(5)
    layer = BitLinear(65, 63)
    set_quantization(layer, strength, 8)
    x = torch.randn(17, 65, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.float().sum().backward()
    weight, bias = (p.detach().clone().requires_grad_() for p in layer.parameters())
    x_twin = x.detach().clone().requires_grad_()
    y_twin = bit_linear_by_detach(x_twin, weight, bias, strength=strength)
    y_twin.sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32
    pairs = [(y.float(), y_twin), (x.grad, x_twin.grad), (layer.weight.grad, weight.grad)]
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=0.02 * other.abs().max().item())


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_inputs_and_masters_stay_as_they_were_and_tokens_stay_apart(strength):
    torch.manual_seed(6)
    layers = [BitLinear(65, 63), BitLinear(65, 7)]
    set_quantization(nn.ModuleList(layers), strength, 8)
    x = torch.randn(5, 65)
    before = x.clone(), [layer.weight.detach().clone() for layer in layers]
    clean = apply_together(x, *layers)
    assert torch.equal(x, before[0])
    for layer, weight in zip(layers, before[1], strict=True):
        assert torch.equal(layer.weight, weight)
    x[2] = torch.nan
    for one, other in zip(apply_together(x, *layers), clean, strict=True):
        assert one[2].isnan().all()
        torch.testing.assert_close(one[[0, 1, 3, 4]], other[[0, 1, 3, 4]])


def test_layers_that_are_not_alike_are_called_one_by_one():
    class Doubled(BitLinear):
        def forward(self, x):
            return 2 * super().forward(x)

    torch.manual_seed(7)
    x, called = torch.randn(3, 9), []
    hooked, soft = BitLinear(9, 4), BitLinear(9, 4)
    hooked.register_forward_hook(lambda *_: called.append("hook"))
    set_quantization(soft, 0.5, 8)
    recipes = [LinearRecipe(inputs="int4"), LinearRecipe(rotate=True), LinearRecipe(norm="rms")]
    layers = [BitLinear(9, 4), hooked, soft, nn.Linear(9, 4), Doubled(9, 4), FrozenBitLinear(9, 4)]
    layers += [BitLinear(9, 4, recipe=recipe) for recipe in (*recipes, LinearRecipe(column_groups=3))]
    for other in layers[1:]:
        for pair in ((layers[0], other), (other, layers[0])):
            for found, layer in zip(apply_together(x, *pair), pair, strict=True):
                assert torch.equal(found, layer(x))
    assert len(called) == 4


def test_impossible_settings_are_refused():
    layer = BitLinear(4, 4)
    for strength in (-0.1, 1.1, float("nan")):
        with pytest.raises(InputError, match="strength"):
            set_quantization(layer, strength, 8)
    with pytest.raises(InputError, match="activation_bits is 5"):
        set_quantization(layer, 1.0, 5)
    assert layer.quantised
    assert (layer.strength, layer.inputs) == (None, "int8")


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by PyTorch itself
def test_compiles_without_a_graph_break_whatever_the_recipe():
    torch.manual_seed(0)
    recipes = [
        LinearRecipe(inputs="int8-top50", norm="layer", rotate=True, row_groups=12),
        LinearRecipe("binary", inputs="fp4", column_groups=3),
    ]
    layers = nn.Sequential(BitLinear(18, 12, recipe=recipes[0]), BitLinear(12, 6, recipe=recipes[1]))
    compiled = torch.compile(layers, fullgraph=True, backend="aot_eager")
    for low_bit in (False, True):
        set_quantization(layers, 1.0, low_bit=low_bit)
        results = []
        for function in (layers, compiled):
            layers.zero_grad()
            y = function(torch.linspace(-1, 2, 54).reshape(3, 18))
            y.square().sum().backward()
            results.append([y.detach(), *(parameter.grad for parameter in layers.parameters())])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)
