"""The two lines, their jump, and the weight decay that ends with the first."""

from dataclasses import replace

import pytest

from bitnet.train.schedule import learning_rate, weight_decay


@pytest.fixture
def recipe(config):
    """The 700M run of the Training Tips."""
    return replace(config, steps=100_000, warmup_steps=375, learning_rate=1.5e-3, second_learning_rate=1e-3)


def test_rates_of_the_published_recipe(recipe):
    assert learning_rate(recipe, 374) == pytest.approx(1.5e-3)
    assert learning_rate(recipe, 0) == pytest.approx(1.5e-3 / 375)
    assert learning_rate(recipe, 375) == pytest.approx(1.5e-3)
    assert learning_rate(recipe, 49_999) == pytest.approx(7.5e-4, rel=0.01)
    assert learning_rate(recipe, 50_000) == pytest.approx(5.0e-4, rel=0.01)
    assert 0 < learning_rate(recipe, 99_999) < 2e-8


def test_both_stages_are_straight_lines(recipe):
    for first in (375, 50_000):
        steps = [first, first + 20_000, first + 40_000]
        low, middle, high = (learning_rate(recipe, step) for step in steps)
        assert middle == pytest.approx((low + high) / 2)


def test_decay_ends_where_the_rate_jumps(recipe):
    assert weight_decay(recipe, 49_999) == 0.1
    assert weight_decay(recipe, 50_000) == 0
    assert weight_decay(replace(recipe, switch=1.0), 99_999) == 0.1


def test_a_run_shorter_than_its_warm_up_still_has_a_rate(config):
    short = replace(config, steps=2, warmup_steps=100)
    assert all(learning_rate(short, step) > 0 for step in range(2))
