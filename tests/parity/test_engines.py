"""The cpu engine against the torch engine on odd shapes: no width is a multiple of a kernel's block.

Two correct engines differ by float rounding, about 1e-7, until an activation code lies that close to a tie
and flips; then logits move by hundredths. So prompts are chosen on which no code does, and there the
engines must agree tightly; on any other prompt they must still agree in what they say.
"""

from dataclasses import replace

import numpy as np
import pytest

import bitnet
from bitnet.config import ModelConfig
from bitnet.cpu_model import CpuModel
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.formats.synthesize import synthesize
from bitnet.formats.tensor import Tensor
from bitnet.formats.tensor_names import EMBEDDING
from bitnet.nn import BitLinear, FrozenBitLinear
from bitnet.quant_config import QuantConfig

SHAPE = {
    "vocab_size": 1000,
    "hidden_size": 192,
    "intermediate_size": 448,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 128,
}
VARIANTS = {
    "plain": {},
    "wide heads": {"head_dim": 48},
    "untied head": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "silu": {"hidden_act": "silu"},
    "masters": {"quantization": QuantConfig("autobitlinear", "online")},
}
TIE_DISTANCE = 2e-5  # in code units; float32 rounding moves a code's argument by at most about 1e-5


@pytest.fixture(scope="module", params=VARIANTS)
def engines(request, tmp_path_factory):
    config = ModelConfig(**{**SHAPE, **VARIANTS[request.param]})
    folder = tmp_path_factory.mktemp("odd") / "model"
    synthesize(config, folder, seed=7, mode=config.quantization.quantization_mode)
    cpu = bitnet.load_model(folder, kv_dtype="float32")
    return cpu, bitnet.load_model(folder, engine="torch")


def run(model, prompts):
    return model.forward([(model.new_cache(128), ids) for ids in prompts], all_logits=True)


def tie_distance(torch_model, ids):
    """How near the nearest activation code of a prompt is to a tie."""
    nearest = [0.5]

    def look(module, inputs):
        x = inputs[0].double()
        scaled = x * (127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5))
        nearest.append(((scaled - scaled.floor()) - 0.5).abs().min().item())

    modules = [m for m in torch_model.transformer.modules() if isinstance(m, BitLinear | FrozenBitLinear)]
    handles = [module.register_forward_pre_hook(look) for module in modules]
    run(torch_model, [ids])
    for handle in handles:
        handle.remove()
    return min(nearest)


def safe_prompts(torch_model, lengths):
    random = np.random.default_rng(5)
    prompts = []
    for length in lengths:
        for _ in range(400):
            ids = random.integers(0, 1000, length).tolist()
            if tie_distance(torch_model, ids) > TIE_DISTANCE:
                prompts.append(ids)
                break
    return prompts


def test_agree_tightly_where_no_code_is_near_a_tie(engines):
    cpu, reference = engines
    prompts = safe_prompts(reference, [1, 2, 3, 4, 5])
    assert len(prompts) == 5
    for found, expected in zip(run(cpu, prompts), run(reference, prompts), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)


def test_agree_in_substance_on_any_ragged_batch(engines):
    cpu, reference = engines
    random = np.random.default_rng(11)
    prompts = [random.integers(0, 1000, length).tolist() for length in (1, 7, 33, 2, 64)]
    for found, expected in zip(run(cpu, prompts), run(reference, prompts), strict=True):
        assert found.shape == expected.shape
        cosine = (found * expected).sum(-1) / np.sqrt((found**2).sum(-1) * (expected**2).sum(-1))
        assert cosine.min() > 0.99


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_embeddings_that_are_not_bfloat16(golden, golden_forward, dtype):
    """Widened to float32, whatever they are stored in: the same numbers, so the same logits."""
    checkpoint = read_checkpoint(golden / "packed_offline")
    embedding = Tensor.of(checkpoint.tensor(EMBEDDING).float32().astype(dtype))
    np.testing.assert_array_equal(embedding.float32(), checkpoint.tensor(EMBEDDING).float32())
    logits = []
    for one in (checkpoint, replace(checkpoint, tensors={**checkpoint.tensors, EMBEDDING: embedding})):
        model = CpuModel.from_checkpoint(one, None)
        logits += model.forward([(model.new_cache(24), golden_forward["input_ids"][0])])
    np.testing.assert_allclose(logits[1], logits[0], rtol=1e-5, atol=1e-5)
