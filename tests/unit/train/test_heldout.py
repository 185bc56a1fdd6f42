"""Bits per byte: every token counts once, on both engines, under a name of its own."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from bitnet.errors import FormatError
from bitnet.nn import Transformer
from bitnet.train.export import whole_tensors
from bitnet.train.heldout import HeldOut, bits_per_byte, open_texts, packed_bits_per_byte, packed_model
from bitnet.train.shards import Corpus
from bitnet.train.sources import open_source


@pytest.fixture
def text(story_file, tokenizer):
    (text,) = open_texts([str(story_file)], tokenizer)
    return text


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return Transformer(config.model)


@pytest.fixture
def trained(model, text):
    """Forty steps on the first half of the text."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    windows = torch.from_numpy(text.ids[: 33 * (len(text.ids) // 66)].reshape(-1, 33))
    for step in range(40):
        rows = windows[torch.arange(4 * step, 4 * step + 4) % len(windows)]
        optimizer.zero_grad()
        model.loss(rows[:, :-1], rows[:, 1:]).backward()
        optimizer.step()
    return model


def test_a_text_is_whole_and_measured_in_bytes(text, story_file, tokenizer):
    corpus = open_source(story_file, tokenizer)
    assert text.name == "story"
    assert np.array_equal(text.ids[:-1], corpus.take(0, len(corpus)))
    assert text.ids[-1] == text.ids[0] == corpus.separator[0]
    assert text.size == 60 * 93
    assert tokenizer.decode(text.ids.tolist()).count("The end of the story") == 60


@pytest.mark.parametrize("length", [1, 2, 7, 32, 63, 10_000])
@pytest.mark.parametrize("tokens", [1, 2, 62, 63, 64, 300])
def test_windows_hold_every_target_once_in_order(length, tokens):
    ids = np.arange(tokens + 1)
    batches = list(HeldOut("text", ids, 1).batches(length, 280))
    for windows in batches:
        assert 1 <= len(windows) <= 8
        assert windows.shape[1] <= length + 1
        assert windows.dtype == ids.dtype
    rows = [row for windows in batches for row in windows]
    assert np.array_equal(np.concatenate([row[1:] for row in rows]), ids[1:])
    assert np.array_equal(np.concatenate([row[:-1] for row in rows]), ids[:-1])
    assert all(len(row) == length + 1 for row in rows[:-1])


def test_a_large_vocabulary_takes_fewer_windows_at_a_time():
    text = HeldOut("text", np.zeros(8 * 4096 + 1, np.int64), 1)
    assert [len(windows) for windows in text.batches(4096, 4096)] == [4, 4]
    assert [len(windows) for windows in text.batches(4096, 128_256)] == [1] * 8


@pytest.mark.parametrize("length", [7, 32, 61])
def test_a_uniform_model_spends_the_same_bits_on_every_token(model, text, length):
    with torch.no_grad():
        model.head_weight.zero_()
    expected = (len(text.ids) - 1) * math.log2(280) / text.size
    assert bits_per_byte(model, text, length) == pytest.approx(expected, rel=1e-6)
    packed = packed_model(whole_tensors(model), model.config)
    assert packed_bits_per_byte(packed, text, length) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("length", [13, 64])
def test_bits_equal_a_sum_over_single_windows(trained, text, length):
    nats = 0.0
    for start in range(0, len(text.ids) - 1, length):
        window = torch.from_numpy(text.ids[start : start + length + 1])
        with torch.no_grad():
            chances = F.log_softmax(trained(window[None, :-1])[0].double(), dim=-1)
        nats -= sum(chances[place, token].item() for place, token in enumerate(window[1:].tolist()))
    expected = nats / math.log(2) / text.size
    assert bits_per_byte(trained, text, length) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("length", [13, 64])
def test_the_packed_model_is_as_good_as_the_one_in_training(trained, text, length):
    bits = bits_per_byte(trained, text, length)
    assert bits < 0.7 * (len(text.ids) - 1) * math.log2(280) / text.size
    packed = packed_model(whole_tensors(trained), trained.config)
    assert packed_bits_per_byte(packed, text, length) == pytest.approx(bits, rel=5e-3)


def test_the_packed_measure_equals_a_plain_softmax_of_its_logits(trained, text):
    packed = packed_model(whole_tensors(trained), trained.config)
    nats = 0.0
    for start in range(0, len(text.ids) - 1, 50):
        window = text.ids[start : start + 51]
        (logits,) = packed.forward([(packed.new_cache(50), window[:-1].tolist())], all_logits=True)
        for row, token in zip(logits.astype(np.float64), window[1:], strict=True):
            nats += np.log(np.exp(row - row.max()).sum()) + row.max() - row[token]
    expected = nats / math.log(2) / text.size
    assert packed_bits_per_byte(packed, text, 50) == pytest.approx(expected, rel=1e-5)


def test_logits_too_large_for_exp_do_not_overflow(model, text):
    with torch.no_grad():
        model.head_weight.mul_(1e4)
    bits = bits_per_byte(model, text, 32)
    packed = packed_bits_per_byte(packed_model(whole_tensors(model), model.config), text, 32)
    assert 100 < bits < math.inf
    assert packed == pytest.approx(bits, rel=5e-3)


def test_measuring_leaves_no_trace(model, text):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bits_per_byte(model, text, 32)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_texts_of_one_name_are_told_apart(tmp_path, tokenizer):
    paths = ["a/story.txt", "b/story.txt", "b/tale.txt", "b/tale.jsonl", "fable.v2.txt"]
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text('{"text": "The cat."}' if path.endswith("l") else "The cat.")
    files = [str(tmp_path / path) for path in paths]
    names = [text.name for text in open_texts([*files, files[0]], tokenizer)]
    assert names == ["a/story.txt", "b/story.txt", "tale.txt", "tale.jsonl", "fable.v2"]


def test_a_text_without_a_byte_is_refused():
    empty = Corpus.from_ids(np.zeros(5, np.uint16), "nothing (validation)", text_bytes=0)
    with pytest.raises(FormatError, match=r"nothing \(validation\): holds no text"):
        HeldOut.of("nothing", empty)
