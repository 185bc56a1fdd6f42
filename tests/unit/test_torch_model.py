"""The torch engine's protocol: what goes in is checked, what comes out does not depend on company."""

from dataclasses import replace

import numpy as np
import pytest

from bitnet.config import ModelConfig
from bitnet.errors import InputError
from bitnet.formats.synthesize import synthesize
from bitnet.load import load_model
from bitnet.nn import KeyValueCache

CONFIG = ModelConfig(
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32,
    head_dim=12,
    tie_word_embeddings=False,
    attention_bias=True,
    mlp_bias=True,
)


@pytest.fixture(scope="module", params=["offline", "online"])
def model(request, tmp_path_factory):
    directory = tmp_path_factory.mktemp("model") / "m"
    synthesize(CONFIG.with_quantization(request.param), directory, seed=3, mode=request.param)
    return load_model(directory, engine="torch")


def test_logits_are_float32_of_the_promised_shapes(model):
    cache = model.new_cache(8)
    (rows,) = model.forward([(cache, [1, 2, 3])], all_logits=True)
    (row,) = model.forward([(cache, np.array([4, 5]))])
    assert rows.shape == (3, 100)
    assert row.shape == (100,)
    assert rows.dtype == row.dtype == np.float32
    assert cache.length == 5


def test_company_changes_nothing(model):
    prompts = [[1, 2, 3, 4], [5], [6, 7]]
    alone = [model.forward([(model.new_cache(8), ids)])[0] for ids in prompts]
    together = model.forward([(model.new_cache(8), ids) for ids in prompts])
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("ids", [[], [100], [-1], [0] * 9, [1.5], ["1"], [[1]]])
def test_bad_ids_are_refused_before_anything_runs(model, ids):
    good, bad = model.new_cache(8), model.new_cache(8)
    with pytest.raises(InputError):
        model.forward([(good, [1]), (bad, ids)])
    assert good.length == bad.length == 0


def test_one_cache_cannot_ride_twice(model):
    cache = model.new_cache(8)
    with pytest.raises(InputError, match="twice"):
        model.forward([(cache, [1]), (cache, [2])])


def test_foreign_caches_are_refused(model):
    class Foreign:
        length, capacity = 0, 8

    with pytest.raises(InputError, match="Foreign"):
        model.forward([(Foreign(), [1])])
    with pytest.raises(InputError, match="another model"):
        model.forward([(KeyValueCache(replace(CONFIG, head_dim=16), 8), [1])])
