from dataclasses import replace

import numpy as np
import pytest

from bitnet.config import ModelConfig
from bitnet.formats.tensor import Tensor
from bitnet.formats.tensor_names import expected_tensors


@pytest.fixture(scope="session")
def small():
    """A shape with every odd trait: head_dim beside hidden / heads, biases, an untied head."""
    return ModelConfig(
        vocab_size=20,
        hidden_size=12,
        intermediate_size=28,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=16,
        head_dim=8,
        tie_word_embeddings=False,
        attention_bias=True,
        mlp_bias=True,
        bos_token_id=0,
        eos_token_id=(1, 2),
    )


@pytest.fixture(scope="session")
def make_tensors():
    """Random tensors that a configuration accepts."""

    def make(config, dtype="BF16", seed=0):
        random = np.random.default_rng(seed)
        valid = np.array([0b00011010, 0b10010100, 0b01010101, 0b00100001], dtype=np.uint8)
        tensors = {}
        for name, item in expected_tensors(config).items():
            if item.kind == "packed":
                tensors[name] = Tensor("U8", item.shape, random.choice(valid, size=item.shape))
                continue
            values = random.uniform(0.5, 1.5, size=item.shape).astype(np.float32)
            if item.kind == "master":
                values -= 1
            wide = {"F16": np.float16}.get(dtype, np.float32)
            tensors[name] = Tensor.of(values.astype(wide), dtype if dtype == "BF16" else None)
        return tensors

    return make


@pytest.fixture(scope="session")
def as_online():
    return lambda config: config.with_quantization("online")


@pytest.fixture(scope="session")
def as_bitlinear():
    def change(config):
        return replace(config, quantization=replace(config.quantization, linear_class="bitlinear"))

    return change
