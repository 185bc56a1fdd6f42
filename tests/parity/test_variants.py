"""Whole random models of every variant: instruction sets, threads and company change no bit, and the torch
engine says the same.

Two correct engines differ by float rounding until a code lies that close to a tie and flips; so of several
short prompts most must agree tightly, and all in substance.
"""

from dataclasses import replace

import numpy as np
import pytest

from bitnet import _core
from bitnet.config import ModelConfig
from bitnet.cpu_model import CpuModel
from bitnet.formats.checkpoint import Checkpoint
from bitnet.formats.tensor import Tensor
from bitnet.formats.tensor_names import expected_tensors
from bitnet.quant_config import VARIANTS, Inputs, QuantConfig

CONFIGS = dict(VARIANTS) | {
    "row": QuantConfig(scales="row", norms="pre"),
    "group": QuantConfig(scales="group", groups=4),
    "w1a8 row": replace(VARIANTS["w1a8"], scales="row"),
    "w1a8 group": replace(VARIANTS["w1a8"], scales="group", groups=4),
    "pre-linear": QuantConfig(norms="pre-linear", inputs=Inputs(down="int4")),
    "binary": QuantConfig(weights="binary"),
}
# each norm, kind of weights and kind of inputs meets either activation
SILU = ("tips", "pre", "w1a8", "a4.8-fp4", "v2-a8", "w1a8 group", "binary")
PROMPTS = [[1], [2, 3, 4, 5, 6, 7, 8], list(range(100, 120)), [499, 0]]


def random_checkpoint(quantization, seed=0, **shape):
    """A checkpoint in memory, of masters: no width is a multiple of a kernel's block."""
    config = ModelConfig(
        **{
            "vocab_size": 500,
            "hidden_size": 192,
            "intermediate_size": 448,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "max_position_embeddings": 128,
            "quantization": quantization.stored_as("online"),
            **shape,
        }
    )
    random = np.random.default_rng(seed)
    tensors = {}
    for name, item in expected_tensors(config).items():
        if item.kind == "norm":
            values = random.uniform(0.8, 1.2, item.shape)
        elif item.kind == "master":
            values = random.standard_normal(item.shape) / np.sqrt(item.shape[1])
        else:
            values = 0.2 * random.standard_normal(item.shape)
        tensors[name] = Tensor.of(values.astype(np.float32))
    return Checkpoint(config, tensors, "random", None, frozenset())


@pytest.fixture(scope="module", params=CONFIGS)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def checkpoint(name):
    biases = name in ("b1.58", "w1a8", "group")
    activation = "silu" if name in SILU else "relu2"
    return random_checkpoint(
        CONFIGS[name], hidden_act=activation, attention_bias=biases, mlp_bias=biases, seed=len(name)
    )


def run(model, prompts, all_logits=True):
    return model.forward([(model.new_cache(128), ids) for ids in prompts], all_logits)


def assert_same_bits(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def test_instruction_sets_threads_and_company_change_nothing(checkpoint):
    alone = CpuModel.from_checkpoint(checkpoint, None, threads=1, isa="scalar")
    expected = [run(alone, [ids])[0] for ids in PROMPTS]
    assert all(np.isfinite(logits).all() and logits.std() > 0.01 for logits in expected)
    for isa in _core.supported_isas():
        for threads in (1, 3):
            model = CpuModel.from_checkpoint(checkpoint, None, threads=threads, isa=isa)
            assert_same_bits(run(model, PROMPTS), expected)


def test_tokens_one_by_one_equal_the_prompt_at_once(checkpoint):
    """Single tokens leave out dead neurons, prompts do not."""
    for isa in _core.supported_isas():
        model = CpuModel.from_checkpoint(checkpoint, None, threads=2, isa=isa)
        cache = model.new_cache(64)
        singly = [model.forward([(cache, [token])])[0] for token in PROMPTS[2]]
        assert_same_bits(singly, list(run(model, [PROMPTS[2]])[0]))


def test_the_torch_engine_agrees(checkpoint):
    torch_model = pytest.importorskip("bitnet.torch_model")
    prompts = [np.random.default_rng(seed).integers(0, 500, 3).tolist() for seed in range(12)]
    cpu = CpuModel.from_checkpoint(checkpoint, None, threads=1, kv_dtype="float32")
    reference = torch_model.TorchModel.from_checkpoint(checkpoint, None)
    close = 0
    for found, expected in zip(run(cpu, prompts), run(reference, prompts), strict=True):
        close += np.abs(found - expected).max() < 1e-4
        cosine = (found * expected).sum(-1) / np.sqrt((found**2).sum(-1) * (expected**2).sum(-1))
        assert cosine.min() > 0.95
    assert close >= 6
