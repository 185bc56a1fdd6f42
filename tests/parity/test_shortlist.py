"""The shortlist head against the full one: the same greedy token and the same 64 largest logits."""

import numpy as np
import pytest

import bitnet
from bitnet.config import ModelConfig
from bitnet.formats.checkpoint import read_checkpoint, write_checkpoint
from bitnet.formats.synthesize import synthesize
from bitnet.formats.tensor import Tensor
from bitnet.quantize.bfloat16 import narrow

CONFIG = ModelConfig(
    vocab_size=40_007,  # 157 blocks of 256 rows, the last one ragged
    hidden_size=192,
    intermediate_size=256,
    num_hidden_layers=1,
    num_attention_heads=6,
    num_key_value_heads=3,
    max_position_embeddings=64,
)


def heavy_tails(random, shape):
    """A few weights thirty times the rest, rows of very different size, a zero row, repeated rows."""
    rows = random.standard_t(3, shape) * np.exp(random.normal(size=(shape[0], 1)))
    rows[11] = 0
    rows[20_000:20_050] = rows[5]
    return rows * 0.02


@pytest.fixture(scope="module", params=["normal", "heavy tails"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("head") / "model"
    synthesize(CONFIG, folder, seed=1)
    if request.param == "normal":
        return folder
    checkpoint = read_checkpoint(folder)
    name = "model.embed_tokens.weight"
    rows = heavy_tails(np.random.default_rng(0), checkpoint.tensor(name).shape).astype(np.float32)
    tensors = dict(checkpoint.tensors) | {name: Tensor("BF16", rows.shape, narrow(rows))}
    write_checkpoint(folder.parent / "heavy", CONFIG, tensors)
    return folder.parent / "heavy"


def last_logits(folder, head, isa=None, threads=2):
    model = bitnet.load_model(folder, head=head, isa=isa, threads=threads)
    prompts = np.random.default_rng(2).integers(0, CONFIG.vocab_size, (70, 3))
    return np.stack(model.forward([(model.new_cache(4), ids) for ids in prompts]))


def test_the_largest_logits_are_the_full_heads(folder, isa):
    full, short = last_logits(folder, "full"), last_logits(folder, "shortlist", isa)
    np.testing.assert_array_equal(short.argmax(-1), full.argmax(-1))
    largest = np.argsort(-full, axis=-1, kind="stable")[:, :64]
    np.testing.assert_array_equal(np.argsort(-short, axis=-1, kind="stable")[:, :64], largest)
    np.testing.assert_array_equal(
        np.take_along_axis(short, largest, -1), np.take_along_axis(full, largest, -1)
    )


def test_the_others_are_close_and_not_all_exact(folder):
    full, short = last_logits(folder, "full"), last_logits(folder, "shortlist")
    assert (full == short).mean() < 0.9  # otherwise nothing was saved and nothing tested
    assert np.corrcoef(full.ravel(), short.ravel())[0, 1] > 0.95


def test_threads_and_instruction_sets_agree(folder, isa):
    expected = last_logits(folder, "shortlist", "scalar", threads=1)
    np.testing.assert_array_equal(last_logits(folder, "shortlist", isa, threads=3), expected)


def test_all_logits_are_exact(folder):
    ids = [1, 2, 3]
    results = []
    for head in ("full", "shortlist"):
        model = bitnet.load_model(folder, head=head)
        results.append(model.forward([(model.new_cache(4), ids)], all_logits=True)[0])
    np.testing.assert_array_equal(*results)
