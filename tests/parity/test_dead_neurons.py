"""Leaving dead neurons out changes no bit: a single token gets what it gets inside a batch, run densely."""

import numpy as np
import pytest

import bitnet
from bitnet.config import ModelConfig
from bitnet.formats.checkpoint import read_checkpoint, write_checkpoint
from bitnet.formats.synthesize import synthesize
from bitnet.formats.tensor import Tensor
from bitnet.quantize.bfloat16 import narrow

CONFIG = ModelConfig(
    vocab_size=300,
    hidden_size=320,  # chunks of 256 rows and of 64
    intermediate_size=448,
    num_hidden_layers=3,
    num_attention_heads=5,
    num_key_value_heads=5,
    max_position_embeddings=64,
    mlp_bias=True,
)


def checkpoint(folder, live_share):
    """Biases decide which gates open: far below 0 in all rows but `live_share` of them."""
    synthesize(CONFIG, folder / "random", seed=4)
    source = read_checkpoint(folder / "random")
    tensors = dict(source.tensors)
    for layer in range(CONFIG.num_hidden_layers):
        live = np.random.default_rng(layer).random(CONFIG.intermediate_size) < live_share
        bias = np.where(live, 5, -100).astype(np.float32)
        tensors[f"model.layers.{layer}.mlp.gate_proj.bias"] = Tensor("BF16", bias.shape, narrow(bias))
    write_checkpoint(folder / "model", CONFIG, tensors)
    return folder / "model"


@pytest.fixture(scope="module", params=[0.0, 0.15, 0.5, 0.9])
def live(request, tmp_path_factory):
    return request.param, checkpoint(tmp_path_factory.mktemp("dead"), request.param)


def test_single_tokens_equal_the_dense_pass(live, isa):
    share, folder = live
    model = bitnet.load_model(folder, isa=isa)
    ids = np.random.default_rng(1).integers(0, CONFIG.vocab_size, 40).tolist()
    (dense,) = model.forward([(model.new_cache(64), ids)], all_logits=True)
    assert model.live_shares is None  # 40 tokens at once: nothing is left out
    cache = model.new_cache(64)
    single = np.stack([model.forward([(cache, [token])])[0] for token in ids])
    np.testing.assert_array_equal(single.view(np.uint32), dense.view(np.uint32))
    up, down = model.live_shares
    assert abs(up - share) < 0.2
    assert down <= up


def test_small_batches_equal_the_dense_pass(live, isa):
    """Up to four tokens look for their dead neurons, five do not."""
    _, folder = live
    model = bitnet.load_model(folder, isa=isa)
    prompts = [np.random.default_rng(seed).integers(0, CONFIG.vocab_size, 12).tolist() for seed in range(5)]

    def decode(count):
        caches = [model.new_cache(16) for _ in range(count)]
        model.forward([(cache, ids[:11]) for cache, ids in zip(caches, prompts, strict=False)])
        return model.forward([(cache, ids[11:]) for cache, ids in zip(caches, prompts, strict=False)])

    dense = decode(5)
    assert model.live_shares is None
    for count in (2, 3, 4):
        for found, expected in zip(decode(count), dense, strict=False):
            np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    assert model.live_shares is not None
