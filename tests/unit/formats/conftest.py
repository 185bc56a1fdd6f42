from dataclasses import replace

import numpy as np
import pytest

from bitnet.config import ModelConfig
from bitnet.formats.checkpoint import Checkpoint
from bitnet.formats.gguf.container import read_container
from bitnet.formats.gguf.container_writer import Planned, write_container
from bitnet.formats.gguf.writer import write_gguf
from bitnet.formats.tensor import Tensor
from bitnet.formats.tensor_names import expected_tensors
from bitnet.quantize.packing import pack_2bit

GGUF_CONFIG = ModelConfig(
    vocab_size=24,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=3,
    eos_token_id=(5, 7),
)


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


@pytest.fixture(scope="session")
def gguf_config():
    """A small shape whose rows divide into every block type's."""
    return GGUF_CONFIG


@pytest.fixture(scope="session")
def make_checkpoint():
    """Makes a checkpoint in memory."""

    def make(config=GGUF_CONFIG, seed=0):
        """A checkpoint in memory with random codes and float16-exact scales."""
        random = np.random.default_rng(seed)
        tensors = {}
        for name, item in expected_tensors(config).items():
            if item.kind == "packed":
                codes = random.integers(-1, 2, (4 * item.shape[0], item.shape[1]), dtype=np.int8)
                tensors[name] = Tensor.of(pack_2bit(codes))
            elif item.kind == "scale":
                tensors[name] = Tensor.of(np.array([random.integers(1, 9) / 4], np.float32), "BF16")
            else:
                tensors[name] = Tensor.of(random.normal(size=item.shape).astype(np.float32), "BF16")
        return Checkpoint(config, tensors, "made", None, frozenset(config.eos_token_id))

    return make


@pytest.fixture
def edited(tmp_path, make_checkpoint):
    """A good file rewritten with other keys or tensors; a value of None drops a key."""

    def edit(metadata=None, tensors=None, config=GGUF_CONFIG, ternary="i2_s", drop=()):
        source = tmp_path / "good.gguf"
        source.unlink(missing_ok=True)
        write_gguf(source, make_checkpoint(config), ternary)
        container = read_container(source)
        values = dict(container.metadata) | (metadata or {})
        values = {key: value for key, value in values.items() if value is not None}
        blocks = {
            item.name: (Planned(item.type, item.shape), item.raw) for item in container.tensors.values()
        }
        blocks |= tensors or {}
        blocks = {name: block for name, block in blocks.items() if name not in drop}
        path = tmp_path / "edited.gguf"
        path.unlink(missing_ok=True)
        planned = {name: plan for name, (plan, _) in blocks.items()}
        write_container(path, values, planned, ((name, np.asarray(raw)) for name, (_, raw) in blocks.items()))
        return path

    return edit
