"""Keys and values in 8, 4 and 3 bits: each instruction set against the NumPy definition, and both engines."""

import numpy as np
import pytest

import bitnet
from bitnet import _core
from bitnet.config import ModelConfig
from bitnet.formats.synthesize import synthesize
from bitnet.quant_config import QuantConfig
from bitnet.quantize.kv_cache import bits_at, quantize_head, restore_head

ODD = {
    "vocab_size": 1000,
    "hidden_size": 192,
    "intermediate_size": 448,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "max_position_embeddings": 1200,
}
PROMPTS = [[1], [2, 3, 4, 5, 6, 7, 8], list(range(100, 133)), [999, 0]]
BITS = {"int8": 8, "int4": 4, "int3": 3}
pytestmark = pytest.mark.parametrize("kv_dtype", BITS)


@pytest.fixture(scope="module", params=[32, 48], ids="head_dim {}".format)
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd") / "model"
    synthesize(ModelConfig(**ODD, head_dim=request.param), folder, seed=3)
    return folder


def run(model, prompts):
    return model.forward([(model.new_cache(1200), ids) for ids in prompts], all_logits=True)


def assert_same_bits(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


def entries(cache):
    """What the first layer holds: (positions, kv_heads, 2, head_dim)."""
    return np.stack([cache.core.read(0, position) for position in range(cache.length)])


def expected_entries(raw, bits):
    """The definition applied to what a float32 cache holds."""
    rows = [(x, bits_at(position, bits)) for position, x in enumerate(raw)]
    return np.stack([restore_head(*quantize_head(x, bits), bits) for x, bits in rows])


def assert_defined(cache, reference, kv_dtype):
    assert cache.length == reference.length
    expected = expected_entries(entries(reference), BITS[kv_dtype])
    np.testing.assert_array_equal(entries(cache), expected)


@pytest.mark.parametrize("head_dim", [2, 15, 16, 34, 64, 128])
def test_the_kernel_gives_the_codes_of_the_definition(isa, kv_dtype, head_dim):
    random = np.random.default_rng(head_dim)
    x = np.concatenate(
        [random.normal(size=(40, head_dim)) * scale for scale in (0, 1e-8, 1e-3, 1, 1e5, 1e30)]
    ).astype(np.float32)
    x[0, 0], x[100, -1], x[120, 0] = -0.0, np.inf, np.nan
    codes, ends = quantize_head(x, BITS[kv_dtype])
    found, found_ends = _core.quantize_head(x, BITS[kv_dtype], isa)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_array_equal(found_ends.view(np.float16), ends)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_cache_holds_the_codes_of_the_definition(folder, kv_dtype, threads):
    """150 tokens as a prompt, singly, and as a prompt within the same block; then truncated and again."""
    ids = [token * 7 % 1000 for token in range(150)]
    caches = []
    for name in (kv_dtype, "float32"):
        model = bitnet.load_model(folder, kv_dtype=name, threads=threads)
        cache = model.new_cache(200)
        for start, end in ((0, 70), (70, 71), (71, 72), (72, 150)):
            model.forward([(cache, ids[start:end])])
        caches.append((model, cache))
    assert_defined(caches[0][1], caches[1][1], kv_dtype)
    for length in (90, 0):
        for model, cache in caches:
            cache.truncate(length)
            model.forward([(cache, ids[length + 10 : length + 60])])
        assert_defined(caches[0][1], caches[1][1], kv_dtype)


def test_instruction_sets_threads_and_company_change_no_bit(folder, isa, kv_dtype):
    model = bitnet.load_model(folder, isa="scalar", threads=1, kv_dtype=kv_dtype)
    alone = [run(model, [ids])[0] for ids in PROMPTS]
    for threads in (1, 3):
        model = bitnet.load_model(folder, isa=isa, threads=threads, kv_dtype=kv_dtype)
        assert_same_bits(run(model, PROMPTS), alone)
        cache = model.new_cache(64)
        assert_same_bits([model.forward([(cache, [token])])[0] for token in PROMPTS[2]], list(alone[2]))


def test_long_contexts_are_shared_out_without_a_trace(tmp_path, isa, kv_dtype):
    """Single tokens split their context over the threads; 512 begins a segment without a first token."""
    small = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 48}
    folder = tmp_path / "model"
    synthesize(ModelConfig(**{**ODD, **small, **heads}), folder, seed=3)
    ids = [token * 7 % 100 for token in range(520)]
    expected = None
    for threads in (1, 3):
        model = bitnet.load_model(folder, isa=isa, threads=threads, kv_dtype=kv_dtype)
        cache = model.new_cache(600)
        model.forward([(cache, ids[:510])])
        singly = [model.forward([(cache, [token])])[0] for token in ids[510:]]
        cache.truncate(470)
        together = model.forward([(cache, ids[470:])], all_logits=True)[0][-10:]
        assert_same_bits(singly, list(together))
        assert_same_bits(singly, expected or singly)
        expected = singly


def test_what_a_longer_past_left_in_the_cache_does_not_leak(folder, kv_dtype):
    model = bitnet.load_model(folder, kv_dtype=kv_dtype)
    cache = model.new_cache(300)
    model.forward([(cache, list(range(300)))])
    for length in (70, 0):
        cache.truncate(length)
        again = model.forward([(cache, [7, 8, 9])], all_logits=True)
        fresh = run(model, [[*range(length), 7, 8, 9]])[0][-3:]
        assert_same_bits(again, [fresh])


def test_both_engines_follow_the_configuration(tmp_path, kv_dtype):
    """Rounding differs by 1e-7 until a code lies that near a tie; most short prompts have none."""
    config = ModelConfig(**ODD, quantization=QuantConfig("autobitlinear", kv_bits=BITS[kv_dtype]))
    synthesize(config, tmp_path / "model", seed=7)
    cpu = bitnet.load_model(tmp_path / "model")
    reference = bitnet.load_model(tmp_path / "model", engine="torch")
    named = bitnet.load_model(tmp_path / "model", kv_dtype=kv_dtype)
    plain = bitnet.load_model(tmp_path / "model", kv_dtype="float32")
    random = np.random.default_rng(5)
    prompts = [random.integers(0, 1000, length).tolist() for length in (1, 2, 3, 3, 4, 4, 5, 5, 33)]
    found, expected = run(cpu, prompts), run(reference, prompts)
    assert_same_bits(found, run(named, prompts))
    near = [np.abs(a - b).max() < 1e-4 for a, b in zip(found, expected, strict=True)]
    assert sum(near) >= len(prompts) // 2
    for a, b in zip(found, expected, strict=True):
        assert ((a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))).min() > 0.98
    changed = [np.abs(a - b).max() for a, b in zip(found, run(plain, prompts), strict=True)]
    assert max(changed) > 1e-3


def test_memory(tmp_path, kv_dtype):
    """What is reserved is the codes, 8 bytes of ranges a position and head, and 3 bits' first token."""
    config = ModelConfig(**{**ODD, "num_attention_heads": 2, "num_key_value_heads": 1}, head_dim=128)
    synthesize(config, tmp_path / "model", seed=7)
    cache = bitnet.load_model(tmp_path / "model", kv_dtype=kv_dtype).new_cache(128)
    bits, layers = BITS[kv_dtype], config.num_hidden_layers
    assert cache.nbytes == layers * (128 * (2 * 128 * bits // 8 + 8) + (128 if bits == 3 else 0))
