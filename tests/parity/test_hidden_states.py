"""Hidden states are what the head multiplies: on every instruction set, in any company, in both engines."""

import numpy as np
import pytest

import bitnet
from bitnet.errors import InputError
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.formats.synthesize import synthesize

PROMPTS = [[5], [3, 1, 4, 1, 5, 9, 2], list(range(7, 20))]


@pytest.fixture
def checkpoint(golden):
    return golden / "packed_offline"


def run(model, prompts):
    return model.hidden_states([(model.new_cache(64), ids) for ids in prompts])


def test_the_head_makes_the_logits_of_them(checkpoint, isa):
    model = bitnet.load_model(checkpoint, isa=isa, threads=1)
    stored = read_checkpoint(checkpoint)
    name = "model.embed_tokens.weight" if stored.config.tie_word_embeddings else "lm_head.weight"
    head = stored.tensor(name).float32().astype(np.float64)
    for ids, hidden in zip(PROMPTS, run(model, PROMPTS), strict=True):
        assert hidden.shape == (len(ids), stored.config.hidden_size)
        assert hidden.dtype == np.float32
        (logits,) = model.forward([(model.new_cache(64), ids)], all_logits=True)
        np.testing.assert_allclose(hidden @ head.T, logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("head", ["full", "shortlist"])
@pytest.mark.parametrize("threads", [1, 2])
def test_company_changes_no_bit(checkpoint, head, threads):
    model = bitnet.load_model(checkpoint, head=head, threads=threads)
    for ids, together in zip(PROMPTS, run(model, PROMPTS), strict=True):
        np.testing.assert_array_equal(together, run(model, [ids])[0])
        cache = model.new_cache(64)
        singly = [model.hidden_states([(cache, [token])])[0] for token in ids]
        np.testing.assert_array_equal(together, np.concatenate(singly))
        assert cache.length == len(ids)


def test_a_prompt_of_several_rounds(tmp_path):
    """The engine takes 512 tokens at a time."""
    config = bitnet.ModelConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1100,
    )
    synthesize(config, tmp_path / "model", seed=1)
    model = bitnet.load_model(tmp_path / "model", threads=1)
    ids = np.random.default_rng(2).integers(300, size=1090).tolist()
    (whole,) = model.hidden_states([(model.new_cache(1100), ids)])
    cache = model.new_cache(1100)
    parts = [model.hidden_states([(cache, ids[a:b])])[0] for a, b in ((0, 100), (100, 700), (700, 1090))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_the_engines_agree(checkpoint):
    pytest.importorskip("torch")
    cpu = run(bitnet.load_model(checkpoint, threads=1, kv_dtype="float32"), PROMPTS)
    torch = run(bitnet.load_model(checkpoint, engine="torch"), PROMPTS)
    for ours, reference in zip(cpu, torch, strict=True):
        np.testing.assert_allclose(ours, reference, rtol=0, atol=1e-4)


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_a_batch_that_is_refused_appends_nothing(checkpoint, engine):
    if engine == "torch":
        pytest.importorskip("torch")
    model = bitnet.load_model(checkpoint, engine=engine)
    cache, other = model.new_cache(4), model.new_cache(4)
    model.hidden_states([(cache, [1])])
    for bad in (
        [(cache, [2]), (other, [])],
        [(cache, [2]), (cache, [3])],
        [(cache, [2] * 4)],
        [(cache, [-1])],
    ):
        with pytest.raises(InputError):
            model.hidden_states(bad)
    assert (cache.length, other.length) == (1, 0)
    assert model.hidden_states([]) == []
