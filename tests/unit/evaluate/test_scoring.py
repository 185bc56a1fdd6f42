"""Batched scores against one pass a pair; texts against lm-evaluation-harness's rules."""

import math

import numpy as np
import pytest

from bitnet.config import ModelConfig
from bitnet.errors import InputError
from bitnet.evaluate import scoring
from bitnet.evaluate.scoring import encode_pair, log_softmax, prefix_token, score, score_ids

TEXTS = [
    ("Once upon a time", " there was a little girl"),
    ("Once upon a time", " qqqq"),
    ("Once upon a time", ", there"),
    ("", "Once upon a time"),
    ("The cat ", "sat"),
    ("Über", " größe 🦊"),
    ("Once upon a time", " there"),
]


def twin(model, context, continuation):
    """One pass over everything, a cache of its own, log softmax in float64."""
    ids = [*context, *continuation]
    (logits,) = model.forward([(model.new_cache(len(ids)), ids)], all_logits=True)
    wide = logits[len(context) - 1 : -1].astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    log_p = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    found = log_p[np.arange(len(continuation)), continuation]
    return found.sum(), (log_p.argmax(axis=-1) == continuation).all()


def random_pairs(model, lengths, seed=5):
    draw = np.random.default_rng(seed)
    vocab = model.config.vocab_size
    return [
        (draw.integers(vocab, size=a).tolist(), draw.integers(vocab, size=b).tolist()) for a, b in lengths
    ]


@pytest.fixture
def pairs(ids_model):
    """Odd lengths; the fourth and fifth share the second's context, the last one follows the greedy path."""
    found = random_pairs(ids_model, [(1, 1), (7, 5), (13, 1), (1, 9), (7, 3), (7, 4)])
    found[4] = (found[1][0], found[4][1])
    found[5] = (found[1][0], found[5][1])
    cache = ids_model.new_cache(16)
    path = [int(ids_model.forward([(cache, found[1][0])])[0].argmax())]
    for _ in range(4):
        path.append(int(ids_model.forward([(cache, path[-1:])])[0].argmax()))
    return [*found, (found[1][0], path)]


def test_scores_are_those_of_a_pass_a_pair(ids_model, pairs):
    for pair, found in zip(pairs, score_ids(ids_model, pairs), strict=True):
        log_likelihood, is_greedy = twin(ids_model, *pair)
        assert found.log_likelihood == pytest.approx(log_likelihood, rel=1e-6)
        assert found.is_greedy == is_greedy
        assert (found.tokens, found.bytes, found.truncated) == (len(pair[1]), 0, 0)
    assert score_ids(ids_model, pairs)[-1].is_greedy


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("rows", [1, 4, 1000])
def test_batches_and_rounds_change_no_bit(ids_model, pairs, batch_size, rows, monkeypatch):
    expected = [score_ids(ids_model, [pair])[0] for pair in pairs]
    monkeypatch.setattr(scoring, "_MAX_LOGITS", rows * ids_model.config.vocab_size)
    monkeypatch.setattr(scoring, "_MAX_CACHED", 10 * rows)
    assert score_ids(ids_model, pairs, batch_size=batch_size) == expected


def test_no_pass_is_larger_than_memory_should_hold(ids_model, pairs, monkeypatch):
    monkeypatch.setattr(scoring, "_MAX_LOGITS", 3 * ids_model.config.vocab_size)
    monkeypatch.setattr(scoring, "_MAX_CACHED", 24)
    sizes = []

    class Watched:
        config, tokenizer, new_cache = ids_model.config, None, ids_model.new_cache

        def forward(self, batch, all_logits=False):
            assert len(batch) == 1 or sum(cache.capacity for cache, _ in batch) <= 24
            sizes.append(sum(len(ids) for _, ids in batch) if all_logits else 0)
            return ids_model.forward(batch, all_logits)

    score_ids(Watched(), pairs)
    assert max(sizes) == 3
    assert sum(sizes) == sum(len(continuation) for _, continuation in pairs)


def test_a_shared_context_runs_once(ids_model):
    ((context, _),) = random_pairs(ids_model, [(50, 1)])
    ran = []

    class Watched:
        config, tokenizer, new_cache = ids_model.config, None, ids_model.new_cache

        def forward(self, batch, all_logits=False):
            ran.extend(len(ids) for _, ids in batch)
            return ids_model.forward(batch, all_logits)

    score_ids(Watched(), [(context, [1, 2]), (context, [3]), (context, [4, 5, 6])])
    assert ran == [49, 2, 1, 3]


def test_the_full_head_scores(golden):
    """A shortlist head keeps 4-bit logits for unlikely ids; scores must not."""
    from bitnet.load import load_model

    models = [load_model(golden / "packed_offline", threads=1, head=head) for head in ("full", "shortlist")]
    pairs = random_pairs(models[0], [(9, 7), (1, 3)])
    assert score_ids(models[0], pairs) == score_ids(models[1], pairs)


def test_a_long_context_is_cut_from_the_left(stories):
    context, continuation = list(range(5, 600)), [7, 8, 9]
    (found,) = score_ids(stories, [(context, continuation)])
    assert found.truncated == len(context) + 3 - 513
    (cut,) = score_ids(stories, [(context[found.truncated :], continuation)])
    assert (cut.log_likelihood, cut.truncated) == (found.log_likelihood, 0)
    (last,) = score_ids(stories, [(context, [3] * 512)])
    assert last.truncated == len(context) - 1


def test_progress(ids_model, pairs):
    seen = []
    score_ids(ids_model, pairs, batch_size=2, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (len(pairs), len(pairs))
    assert len(seen) > 1
    assert score_ids(ids_model, []) == []


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([([1], [2]), ([], [3])], "pair 1: context and continuation need at least one id each"),
        ([([1], [])], "pair 0"),
        ([([1], [2] * 513)], "continuation 0 has 513 tokens; the model's context holds 512"),
        ([([1], [4096])], r"token id 4096 is outside 0\.\.4095"),
        ([([1], [-1])], r"token id -1 is outside"),
    ],
)
def test_ids_that_cannot_be_scored(stories, pairs, message):
    with pytest.raises(InputError, match=message):
        score_ids(stories, pairs)


def test_texts(stories):
    for (context, continuation), found in zip(TEXTS, score(stories, TEXTS), strict=True):
        ids = encode_pair(stories.tokenizer, 0, context, continuation)
        assert found.log_likelihood == score_ids(stories, [ids])[0].log_likelihood
        assert found.tokens == len(ids[1])
        assert found.bytes == len(continuation.encode())
    likely, unlikely = score(stories, TEXTS[:2])
    assert likely.log_likelihood / likely.tokens > unlikely.log_likelihood / unlikely.tokens


def test_spaces_go_to_the_continuation(stories):
    tokenizer = stories.tokenizer
    assert encode_pair(tokenizer, 0, "The cat ", "sat") == encode_pair(tokenizer, 0, "The cat", " sat")
    context, continuation = encode_pair(tokenizer, 0, "The cat", " sat")
    assert tokenizer.decode(continuation) == " sat"
    assert context == tokenizer.encode("The cat")


def test_a_continuation_that_merges_with_its_context(stories):
    tokenizer = stories.tokenizer
    assert len(tokenizer.encode("ab")) == len(tokenizer.encode("a"))
    assert encode_pair(tokenizer, 0, "a", "b") == (tokenizer.encode("a"), tokenizer.encode("b", False))


def test_an_empty_context_is_the_beginning_of_a_text(stories):
    assert encode_pair(stories.tokenizer, 17, "", "Once")[0] == [17]
    assert encode_pair(stories.tokenizer, 17, " ", "Once") == ([17], stories.tokenizer.encode(" Once", False))


@pytest.mark.parametrize("text", ["<|endoftext|>", " <|endoftext|> a"])
def test_control_tokens_are_text(stories, text):
    _, ids = encode_pair(stories.tokenizer, 0, "a", text)
    assert 0 not in ids
    assert 0 in encode_pair(stories.tokenizer, 0, "a", text, special=True)[1]


def test_texts_that_cannot_be_scored(stories, ids_model):
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        score(ids_model, TEXTS)
    with pytest.raises(InputError, match="continuation 1 is empty"):
        score(stories, [("a", "b"), ("a", "")])
    with pytest.raises(InputError, match="batch_size is 0"):
        score(stories, TEXTS, batch_size=0)


def test_prefix_token(stories, ids_model):
    shape = {
        "vocab_size": 9,
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "max_position_embeddings": 9,
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}

    class Bare:
        tokenizer = None

        def __init__(self, **tokens):
            self.config = ModelConfig(**shape, **heads, **tokens)

    assert prefix_token(stories) == 0
    assert prefix_token(Bare(bos_token_id=3, eos_token_id=(4,))) == 3
    assert prefix_token(Bare(eos_token_id=(4, 5))) == 4
    with pytest.raises(InputError, match="no bos_token and no eos_token"):
        prefix_token(Bare())


def test_log_softmax_of_extreme_logits():
    logits = np.array([1e30, -1e30, 1e30], np.float32)
    assert log_softmax(logits, 0) == pytest.approx(-math.log(2))
    assert log_softmax(logits, 1) < -1e30
