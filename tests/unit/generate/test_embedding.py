"""Means of hidden states: one text at a time is the twin of any batch."""

import numpy as np
import pytest

import bitnet
from bitnet.errors import InputError
from bitnet.generate import embedding

TEXTS = ["Once upon a time, there was a little girl named Lily.", "The cat sat.", "Bär 🐻", "a"]


@pytest.fixture(scope="module")
def stories():
    return bitnet.load_model(threads=1)


@pytest.mark.parametrize("tokens", [1, 9, 1000])
def test_means_of_hidden_states(stories, monkeypatch, tokens):
    monkeypatch.setattr(embedding, "_MAX_TOKENS", tokens)
    found = bitnet.embed(stories, TEXTS)
    assert found.shape == (4, stories.config.hidden_size)
    assert found.dtype == np.float32
    for text, vector in zip(TEXTS, found, strict=True):
        ids = stories.tokenizer.encode(text)
        assert ids[0] == 0
        (states,) = stories.hidden_states([(stories.new_cache(len(ids)), ids)])
        np.testing.assert_array_equal(vector, states.astype(np.float64).mean(axis=0).astype(np.float32))


def test_no_pass_is_larger_than_memory_should_hold(stories, monkeypatch):
    monkeypatch.setattr(embedding, "_MAX_TOKENS", 10)
    passes = []

    class Watched:
        config, tokenizer, new_cache = stories.config, None, stories.new_cache

        def hidden_states(self, batch):
            passes.append([len(ids) for _, ids in batch])
            return stories.hidden_states(batch)

    bitnet.embed(Watched(), [[1] * n for n in (3, 4, 5, 12, 1)])
    assert passes == [[3, 4], [5], [12], [1]]


def test_the_engines_agree(stories):
    pytest.importorskip("torch")
    cpu = bitnet.load_model(threads=1, kv_dtype="float32")
    torch = bitnet.load_model(engine="torch")
    np.testing.assert_allclose(bitnet.embed(cpu, TEXTS), bitnet.embed(torch, TEXTS), rtol=0, atol=1e-4)


def test_normalized(stories):
    vectors = bitnet.embed(stories, TEXTS, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    plain = bitnet.embed(stories, TEXTS)
    np.testing.assert_allclose(vectors * np.linalg.norm(plain, axis=1, keepdims=True), plain, rtol=1e-5)
    # a text is nearer to its like than to another
    near = bitnet.embed(stories, ["The dog ran.", "The dog ran fast.", "Numbers: 7 8 9"], normalize=True)
    assert near[0] @ near[1] > near[0] @ near[2]


def test_ids_are_taken_as_they_are(stories):
    ids = [stories.tokenizer.encode(text) for text in TEXTS]
    np.testing.assert_array_equal(bitnet.embed(stories, ids), bitnet.embed(stories, TEXTS))


def test_no_texts(stories):
    assert bitnet.embed(stories, []).shape == (0, stories.config.hidden_size)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a", "texts is one string; give a list of them"),
        (["a", ""], "text 1 is empty"),
        ([[]], "text 0 is empty"),
        (["word " * 600], r"text 0 has \d+ tokens; the model's context holds 512"),
        ([[4096]], r"token id 4096 is outside 0\.\.4095"),
    ],
)
def test_texts_that_are_refused(stories, texts, message):
    with pytest.raises(InputError, match=message):
        bitnet.embed(stories, texts)


def test_text_without_a_tokenizer(golden):
    model = bitnet.load_model(golden / "packed_offline", threads=1)
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        bitnet.embed(model, ["a"])
