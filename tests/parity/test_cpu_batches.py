"""Company, threads, chunks and instruction sets change no bit of a result."""

import numpy as np
import pytest

import bitnet
from bitnet.config import ModelConfig
from bitnet.formats.synthesize import synthesize
from bitnet.quant_config import QuantConfig

ODD = {
    "vocab_size": 1000,
    "hidden_size": 192,
    "intermediate_size": 448,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 1200,
}
VARIANTS = {
    "plain": {},
    "wide heads": {"head_dim": 48},
    "untied head": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "silu": {"hidden_act": "silu"},
    "masters": {"quantization": QuantConfig("autobitlinear", "online")},
}
PROMPTS = [[1], [2, 3, 4, 5, 6, 7, 8], list(range(100, 133)), [999, 0]]


@pytest.fixture(scope="module", params=VARIANTS)
def folder(request, tmp_path_factory):
    config = ModelConfig(**{**ODD, **VARIANTS[request.param]})
    folder = tmp_path_factory.mktemp("odd") / "model"
    synthesize(config, folder, seed=3, mode=config.quantization.quantization_mode)
    return folder


def run(model, prompts, all_logits=True):
    return model.forward([(model.new_cache(1200), ids) for ids in prompts], all_logits)


def assert_same_bits(left, right):
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def test_logits_are_finite_and_vary(folder):
    for logits in run(bitnet.load_model(folder), PROMPTS):
        assert np.isfinite(logits).all()
        assert logits.std() > 0.01


def test_a_batch_gives_what_each_sequence_gives_alone(folder, isa):
    model = bitnet.load_model(folder, isa=isa)
    alone = [run(model, [ids])[0] for ids in PROMPTS]
    assert_same_bits(run(model, PROMPTS), alone)
    assert_same_bits(run(model, PROMPTS, all_logits=False), [logits[-1] for logits in alone])


def test_instruction_sets_and_threads_agree(folder, isa):
    reference = run(bitnet.load_model(folder, isa="scalar", threads=1), PROMPTS)
    for threads in (1, 2, 5):
        assert_same_bits(run(bitnet.load_model(folder, isa=isa, threads=threads), PROMPTS), reference)


def test_tokens_one_by_one_equal_the_prompt_at_once(folder):
    model = bitnet.load_model(folder)
    ids = PROMPTS[2]
    cache = model.new_cache(64)
    singly = [model.forward([(cache, [token])])[0] for token in ids]
    assert_same_bits(singly, list(run(model, [ids])[0]))


def test_prompts_and_single_tokens_mix(folder):
    model = bitnet.load_model(folder)
    started = model.new_cache(64)
    model.forward([(started, PROMPTS[2])])
    fresh = model.new_cache(64)
    mixed = model.forward([(started, [17]), (fresh, PROMPTS[1])])
    alone = run(model, [[*PROMPTS[2], 17], PROMPTS[1]], all_logits=False)
    assert_same_bits(mixed, alone)


def test_a_prompt_beyond_one_chunk(folder):
    """1,100 tokens go through the layers in three rounds."""
    model = bitnet.load_model(folder)
    ids = [token % 1000 for token in range(1100)]
    whole = model.forward([(model.new_cache(1200), ids)])
    cache = model.new_cache(1200)
    model.forward([(cache, ids[:700])])
    assert_same_bits(model.forward([(cache, ids[700:])]), whole)


def test_truncating_forgets(folder):
    model = bitnet.load_model(folder)
    cache = model.new_cache(64)
    model.forward([(cache, PROMPTS[2])])
    cache.truncate(5)
    assert cache.length == 5
    again = model.forward([(cache, [7, 8])])
    assert_same_bits(again, run(model, [[*PROMPTS[2][:5], 7, 8]], all_logits=False))


@pytest.mark.parametrize("kv_dtype", ["float16", "float32"])
def test_what_a_longer_past_left_in_the_cache_does_not_leak(folder, kv_dtype):
    model = bitnet.load_model(folder, kv_dtype=kv_dtype)
    cache = model.new_cache(300)
    model.forward([(cache, list(range(300)))])
    cache.truncate(70)
    again = model.forward([(cache, [7, 8, 9])], all_logits=True)
    fresh = run(model, [[*range(70), 7, 8, 9]])[0][-3:]
    assert_same_bits(again, [fresh])


def test_long_contexts_are_shared_out_without_a_trace(tmp_path, isa):
    """Single tokens split their context over the threads, prompts do not; 1,024 begins a segment."""
    folder = tmp_path / "model"
    synthesize(ModelConfig(**{**ODD, **VARIANTS["wide heads"]}), folder, seed=3)
    ids = [token * 7 % 1000 for token in range(1030)]
    expected = None
    for threads in (1, 3):
        model = bitnet.load_model(folder, isa=isa, threads=threads)
        cache = model.new_cache(1100)
        model.forward([(cache, ids[:1020])])
        singly = [model.forward([(cache, [token])])[0] for token in ids[1020:]]
        cache.truncate(960)
        together = model.forward([(cache, ids[960:])], all_logits=True)[0][-10:]
        assert_same_bits(singly, list(together))
        assert_same_bits(singly, expected or singly)
        expected = singly
