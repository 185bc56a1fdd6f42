"""BitLinear: the quantisers against their definition, gradients against the textbook form."""

import numpy as np
import pytest
import torch
from torch import nn

from bitnet.errors import InputError
from bitnet.nn import BitLinear, FrozenBitLinear
from bitnet.nn.bitlinear import (
    apply_together,
    bit_linear_by_detach,
    int8_codes,
    set_quantization,
    ternary_codes,
)
from bitnet.quantize.activations import quantize_int8
from bitnet.quantize.weights import ternarize


@pytest.fixture(scope="module")
def ops(golden):
    return np.load(golden / "ops.npz")


def test_quantisers_give_the_recorded_codes_and_values(ops):
    codes, scale = ternary_codes(torch.from_numpy(ops["W_bf16_as_f32"]))
    np.testing.assert_allclose((codes * scale).numpy(), ops["wq_f32"], rtol=1e-6)
    np.testing.assert_array_equal(codes.numpy(), np.sign(ops["wq_f32"]))
    codes, scale = int8_codes(torch.from_numpy(ops["X_bf16_as_f32"]))
    np.testing.assert_array_equal(codes.numpy(), ops["bitlinear_act_int8_f32"])
    np.testing.assert_allclose((codes / scale).numpy(), ops["aq_f32"], rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 1), (63, 130), (192, 448), (768, 256)])
def test_quantisers_equal_their_numpy_definition(shape):
    values = np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)
    values[0] = 0
    values[1] *= 1e-34  # published masters hold such dead rows
    codes, scale = ternary_codes(torch.from_numpy(values))
    expected_codes, expected_scale = ternarize(values)
    np.testing.assert_array_equal(codes.numpy(), expected_codes)
    assert scale.item() == expected_scale
    codes, scale = int8_codes(torch.from_numpy(values))
    expected_codes, expected_scales = quantize_int8(values)
    np.testing.assert_array_equal(codes.numpy(), expected_codes)
    np.testing.assert_array_equal(scale.numpy(), expected_scales)


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


@pytest.mark.parametrize("bias", [True, False])
def test_frozen_layer_gives_what_the_masters_gave(bias):
    torch.manual_seed(2)
    layer = BitLinear(63, 20, bias=bias)
    frozen = FrozenBitLinear(63, 20, bias=bias)
    codes, scale = ternary_codes(layer.weight.detach())
    frozen.load_state_dict(
        {"codes": codes.to(torch.int8), "scale": scale} | ({"bias": layer.bias.detach()} if bias else {})
    )
    x = torch.randn(4, 63)
    torch.testing.assert_close(frozen(x), layer(x))


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("activation_bits", [4, 8, 16])
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
    y_twin = bit_linear_by_detach(x_twin, weight, bias, strength, activation_bits if strength else 16)
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
    y_twin = bit_linear_by_detach(x_twin, weight, bias, strength, 8)
    y_twin.sum().backward()
    assert y.dtype == torch.bfloat16
    assert x.grad.dtype == layer.weight.grad.dtype == torch.float32
    pairs = [(y.float(), y_twin), (x.grad, x_twin.grad), (layer.weight.grad, weight.grad)]
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=0.02 * other.abs().max().item())


def test_four_bits_have_sixteen_levels():
    x = torch.tensor([[-1.0, 0.07, 0.08, 0.5, 1.0]])
    codes, scale = int8_codes(x, bits=4)
    assert codes.tolist() == [[-7, 0, 1, 4, 7]]  # 3.5 rounds to the even 4
    assert scale.item() == 7


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
    set_quantization(soft, 0.5, 4)
    layers = [BitLinear(9, 4), hooked, soft, nn.Linear(9, 4), Doubled(9, 4), FrozenBitLinear(9, 4)]
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
    assert (layer.strength, layer.activation_bits) == (None, 8)
