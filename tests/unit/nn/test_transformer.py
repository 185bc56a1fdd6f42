"""The transformer: published names, odd shapes, and a cache that changes nothing but the work."""

from dataclasses import replace

import pytest
import torch

from bitnet.config import ModelConfig
from bitnet.errors import InputError
from bitnet.formats.tensor_names import count_parameters, expected_tensors
from bitnet.nn import BitLinear, FrozenBitLinear, KeyValueCache, Transformer
from bitnet.nn.bitlinear import set_quantization
from bitnet.quant_config import VARIANTS as LINE
from bitnet.quant_config import Inputs, QuantConfig

ODD = ModelConfig(
    vocab_size=1000,
    hidden_size=192,
    intermediate_size=448,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=3,
    max_position_embeddings=64,
).with_quantization("online")
GROUPS = QuantConfig(weights="binary", scales="group", groups=4, norms="pre-linear")
VARIANTS = {
    "plain": ODD,
    "head_dim": replace(ODD, head_dim=20),
    "biases": replace(ODD, attention_bias=True, mlp_bias=True),
    "untied silu": replace(ODD, tie_word_embeddings=False, hidden_act="silu"),
    "rows": replace(ODD, quantization=QuantConfig(scales="row").stored_as("online")),
    "groups": replace(ODD, quantization=GROUPS.stored_as("online")),
} | {
    name: replace(ODD, quantization=quantization.stored_as("online"))
    for name, quantization in LINE.items()
    if name != "b1.58"
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request):
    torch.manual_seed(0)
    return Transformer(request.param)


def test_state_dict_is_the_published_key_set(model):
    expected = {name: item.shape for name, item in expected_tensors(model.config).items()}
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == expected
    assert sum(p.numel() for p in model.parameters()) == count_parameters(model.config)


def test_projections_follow_the_storage_mode():
    for mode, kind in (("online", BitLinear), ("offline", FrozenBitLinear)):
        for config in VARIANTS.values():
            model = Transformer(config.with_quantization(mode))
            found = {name: module for name, module in model.named_modules() if name.endswith("_proj")}
            assert len(found) == 14
            for name, module in found.items():
                assert type(module) is kind
                rows = (module.weight if mode == "online" else module.codes).shape[0]
                assert module.recipe == config.quantization.recipe(name, rows)


def test_weights_start_with_the_configured_spread(model):
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all()
        elif parameter.ndim == 1:
            assert (parameter == 1).all()
        else:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05)


def test_cached_pieces_give_the_logits_of_the_whole(model):
    ids = torch.randint(0, 1000, (1, 11))
    with torch.inference_mode():
        whole = model(ids)
        cache = KeyValueCache(model.config, 16)
        pieces = [model(piece, cache) for piece in ids.split([4, 1, 5, 1], dim=1)]
        assert cache.length == 11
        cache.truncate(5)
        again = model(ids[:, 5:], cache)
    # attention sums in another order, so a code may flip, which moves a logit by a part of their spread; a
    # wrong mask or position moves all of them by as much as they spread
    for found, expected in ((torch.cat(pieces, 1), whole), (again, whole[:, 5:])):
        assert (found - expected).abs().mean() < 0.05 * whole.std()


def test_no_token_sees_a_later_one(model):
    ids = torch.randint(0, 1000, (1, 9))
    changed = ids.clone()
    changed[0, 6] = (ids[0, 6] + 1) % 1000
    with torch.inference_mode():
        before, after = model(ids), model(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_last_only_is_the_last_row(model):
    ids = torch.randint(0, 1000, (2, 5))
    with torch.inference_mode():
        torch.testing.assert_close(model(ids, last_only=True), model(ids)[:, -1:])


def test_every_parameter_gets_a_gradient(model):
    ids = torch.randint(0, 1000, (2, 8))
    model.loss(ids[:, :-1], ids[:, 1:]).backward()
    for name, parameter in model.named_parameters():
        if "k_proj.bias" not in name:  # softmax does not see a shift common to all keys, up to rotation
            assert parameter.grad.abs().max() > 0, name


def test_cache_refuses_impossible_sizes():
    for capacity in (0, 65):
        with pytest.raises(InputError, match="1 to 64"):
            KeyValueCache(ODD, capacity)
    cache = KeyValueCache(ODD, 64)
    for length in (-1, 1):
        with pytest.raises(InputError, match="truncate"):
            cache.truncate(length)


TINY = ModelConfig(
    vocab_size=40,
    hidden_size=36,
    intermediate_size=52,
    num_hidden_layers=2,
    num_attention_heads=3,
    num_key_value_heads=1,
    max_position_embeddings=16,
).with_quantization("online")


def gradients(model, loss, ids):
    """The loss and every parameter's gradient."""
    model.zero_grad()
    value = loss(ids[:, :-1], ids[:, 1:])
    value.backward()
    return value.detach(), [parameter.grad.clone() for parameter in model.parameters()]


ROTATED = QuantConfig(
    inputs=Inputs("fp4", "int4", "int8-top50", "int1"), norms="linear", norm_kind="layer", rotation="hadamard"
)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("quantization", [QuantConfig(), ROTATED], ids=["b1.58", "other quantisers"])
def test_checkpointing_changes_no_bit(quantization, strength):
    torch.manual_seed(0)
    model = Transformer(replace(TINY, quantization=quantization.stored_as("online")))
    set_quantization(model, strength, 8)
    ids = torch.randint(0, 40, (2, 9))
    expected, calls = gradients(model, model.loss, ids), []
    model.model.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    model.model.activation_checkpointing = True
    found = gradients(model, model.loss, ids)
    assert len(calls) == 2  # again in the backward pass
    assert torch.equal(found[0], expected[0])
    for one, other in zip(found[1], expected[1], strict=True):
        assert torch.equal(one, other)
    model.eval()
    gradients(model, model.loss, ids)
    assert len(calls) == 3


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by PyTorch itself
def test_compiles_without_a_graph_break_once_for_every_strength_between():
    torch.manual_seed(0)
    model = Transformer(replace(TINY, num_hidden_layers=1))
    ids = torch.randint(0, 40, (2, 9))
    # this backend traces forward and backward like the default one, and leaves out its C++
    compiled = torch.compile(model.loss, fullgraph=True, backend="aot_eager")
    for strength in (1.0, 0.25, 0.75, 0.0):
        set_quantization(model, strength, 8)
        expected = gradients(model, model.loss, ids)
        stance = "fail_on_recompile" if strength == 0.75 else "default"
        with torch.compiler.set_stance(stance):
            found = gradients(model, compiled, ids)
        torch.testing.assert_close(found[0], expected[0])
        for one, other in zip(found[1], expected[1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
