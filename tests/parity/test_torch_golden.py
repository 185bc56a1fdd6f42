"""The torch engine and the training forward pass against Hugging Face's recorded outputs."""

import numpy as np
import pytest
import torch

from bitnet.formats.checkpoint import read_checkpoint
from bitnet.load import load_model
from bitnet.nn import Transformer


@pytest.fixture(scope="module")
def packed(golden):
    return load_model(golden / "packed_offline", engine="torch")


def test_safe_prompt_logits(golden, golden_forward, checkpoint_name):
    model = load_model(golden / checkpoint_name, engine="torch")
    (logits,) = model.forward([(model.new_cache(16), golden_forward["ids_safe"][0])], all_logits=True)
    expected = golden_forward[f"safe_logits_{checkpoint_name}_fp32"][0]
    np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


def test_long_prompts_stay_within_the_reach_of_int8_ties(golden, golden_forward, checkpoint_name):
    model = load_model(golden / checkpoint_name, engine="torch")
    batch = [(model.new_cache(24), ids) for ids in golden_forward["input_ids"]]
    logits = np.stack(model.forward(batch, all_logits=True))
    expected = golden_forward[f"logits_{checkpoint_name}_fp32"]
    assert np.abs(logits - expected).max() < 0.3
    np.testing.assert_array_equal(logits.argmax(-1), expected.argmax(-1))


def test_greedy_continuation_token_for_token(packed, golden_forward):
    expected = golden_forward["greedy_packed_offline"][0].tolist()
    cache = packed.new_cache(len(expected))
    found, fed = expected[:8], expected[:8]
    while len(found) < len(expected):
        (logits,) = packed.forward([(cache, fed)])
        fed = [int(logits.argmax())]
        found += fed
    assert found == expected


TRACED = {
    "in_ln": "input_layernorm",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "attn_sub": "self_attn.attn_sub_norm",
    "o": "self_attn.o_proj",
    "post_ln": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "ffn_sub": "mlp.ffn_sub_norm",
    "down": "mlp.down_proj",
}


def test_first_layer_trace(packed, golden_forward):
    """Every module's output in layer 0, tokens 0..3 (causal, so the rest of the prompt does not matter)."""
    seen = {}
    layer = packed.transformer.model.layers[0]
    hooks = [
        layer.get_submodule(path).register_forward_hook(
            lambda _module, _inputs, output, name=name: seen.__setitem__(name, output[0].numpy())
        )
        for name, path in TRACED.items()
    ]
    packed.forward([(packed.new_cache(4), golden_forward["input_ids"][0, :4])])
    for hook in hooks:
        hook.remove()
    for name in TRACED:
        expected = golden_forward[f"trace0_packed_offline_{name}"]
        np.testing.assert_allclose(seen[name], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_training_loss_and_gradients(golden):
    expected = np.load(golden / "train.npz")
    checkpoint = read_checkpoint(golden / "bf16_online")
    model = Transformer(checkpoint.config)
    state = {name: torch.from_numpy(tensor.float32()) for name, tensor in checkpoint.tensors.items()}
    model.load_state_dict(state)
    ids = torch.from_numpy(expected["input_ids"])
    loss = model.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()
    assert loss.item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    found = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    assert set(found) == set(expected["grad_names"])
    for name, norm in zip(expected["grad_names"], expected["grad_norms"], strict=True):
        assert np.linalg.norm(found[name].astype(np.float64)) == pytest.approx(norm, rel=1e-5), name
    for key in (key for key in expected if key.startswith("grad:")):
        gradient = expected[key]
        np.testing.assert_allclose(found[key[5:]], gradient, atol=1e-5 * np.abs(gradient).max(), rtol=0)
