"""The published curves, and curves of one's own."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import ConfigError
from bitnet.train.config import LearningRateConfig, ScheduleConfig, Stage, WeightDecayConfig
from bitnet.train.schedule import Schedule, evaluate

PUBLISHED = LearningRateConfig(peak=1.5e-3, second_peak=1e-3, warmup=375)


def test_rates_of_the_published_recipe():
    """100,000 steps: about 7.7e-4 before the switch, 5.2e-4 behind it, and about 0 at the end."""
    schedule = Schedule(ScheduleConfig(horizon=100_000, learning_rate=PUBLISHED), 1)
    assert schedule.at(0).learning_rate == pytest.approx(1.5e-3 / 375)
    assert schedule.at(49_999).learning_rate == pytest.approx(7.5e-4, rel=1e-3)
    assert schedule.at(50_000).learning_rate == pytest.approx(5e-4, rel=1e-3)
    assert schedule.at(99_999).learning_rate == pytest.approx(1e-8, rel=1e-3)
    assert (schedule.at(49_999).weight_decay, schedule.at(50_000).weight_decay) == (0.1, 0.0)


def test_both_stages_are_straight_lines():
    schedule = Schedule(ScheduleConfig(horizon=1000, learning_rate=LearningRateConfig(warmup=0)), 1)
    rates = [schedule.at(step).learning_rate for step in range(1000)]
    for part in (rates[:500], rates[500:]):
        steps = [b - a for a, b in pairwise(part)]
        assert max(steps) - min(steps) < 1e-12
    assert rates[500] / rates[499] == pytest.approx(2 / 3, rel=5e-3)


def test_the_cosines_of_2b4t():
    config = ScheduleConfig(
        horizon=1000,
        learning_rate=LearningRateConfig("two-stage-cosine", peak=2.0, second_peak=0.5, warmup=0),
        weight_decay=WeightDecayConfig("two-stage-cosine"),
    )
    schedule = Schedule(config, 1)
    for step in (0, 123, 499):
        assert schedule.at(step).learning_rate == pytest.approx(1 + math.cos(math.pi * step / 1000))
    for step in (500, 750, 999):
        part = (step - 500) / 500
        assert schedule.at(step).learning_rate == pytest.approx(0.25 * (1 + math.cos(math.pi * part)))
    assert schedule.at(250).weight_decay == pytest.approx(0.05)
    assert schedule.at(499).weight_decay == pytest.approx(0.1, rel=1e-4)
    assert schedule.at(500).weight_decay == 0


def test_tokens_and_steps_are_the_same_run():
    by_step = Schedule(ScheduleConfig(horizon=50, quantizer_warmup=10), 256)
    by_token = Schedule(
        ScheduleConfig(
            horizon=50 * 256,
            unit="tokens",
            quantizer_warmup=10 * 256,
        ),
        256,
    )
    assert by_token.steps == by_step.steps == 50
    for step in range(50):
        assert by_token.at(step) == by_step.at(step)


def test_a_horizon_of_tokens_is_reached_not_missed():
    assert Schedule(ScheduleConfig(horizon=1001, unit="tokens"), 100).steps == 11


def test_the_quantiser_warms_up_and_can_stay_off():
    schedule = Schedule(ScheduleConfig(horizon=100, quantizer_warmup=20), 1)
    strengths = [schedule.at(step).quantizer_strength for step in (0, 5, 20, 99)]
    assert strengths == pytest.approx([0, 0.25, 1, 1])
    assert schedule.at(20).quantizer_strength == 1  # exactly: only then are the codes exact
    plain = Schedule(ScheduleConfig(horizon=100, quantized=False), 1).at(50)
    assert (plain.quantizer_strength, plain.activation_bits) == (0, 16)


def test_own_pieces_replace_a_recipe():
    pieces = (Stage(0.25, 1, 3), Stage(1, 5, 5))
    schedule = Schedule(ScheduleConfig(horizon=100, curves={"weight_decay": pieces}), 1)
    assert [schedule.at(step).weight_decay for step in (0, 10, 25, 99)] == pytest.approx([1, 1.8, 5, 5])
    assert schedule.curves["weight_decay"] == pieces


@pytest.mark.parametrize(
    "pieces",
    [
        (),
        (Stage(0.5, 1, 1),),
        (Stage(0.6, 1, 1), Stage(0.5, 1, 1), Stage(1, 1, 1)),
        (Stage(1, 1, 0, begin=0.5, finish=0.5),),
    ],
)
def test_pieces_must_cover_the_run(pieces):
    with pytest.raises(ConfigError, match=r"schedule\.curves\.learning_rate"):
        Schedule(ScheduleConfig(horizon=10, curves={"learning_rate": pieces}), 1)


def test_a_quantiser_beyond_fully_on_is_refused():
    with pytest.raises(ConfigError, match="beyond 1"):
        Schedule(ScheduleConfig(horizon=10, curves={"quantizer_strength": (Stage(1, 0, 1.5),)}), 1)


def test_a_warm_up_of_the_whole_run_is_refused():
    with pytest.raises(ConfigError, match="quantizer_warmup"):
        Schedule(ScheduleConfig(horizon=10, quantizer_warmup=10), 1)


@given(st.floats(0, 2), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["linear", "cosine"]))
def test_a_piece_stays_between_its_ends(position, start, end, shape):
    value = evaluate((Stage(1, start, end, shape),), position)
    assert min(start, end) - 1e-12 <= value <= max(start, end) + 1e-12


def test_activation_bits_change_from_piece_to_piece():
    pieces = (Stage(0.25, 16, 16), Stage(1, 8, 8))
    schedule = Schedule(ScheduleConfig(horizon=100, curves={"activation_bits": pieces}), 1)
    assert [schedule.at(step).activation_bits for step in (0, 24, 25, 99)] == [16, 16, 8, 8]
    for wrong in (Stage(1, 16, 8), Stage(1, 7, 7)):
        with pytest.raises(ConfigError, match="activation_bits"):
            Schedule(ScheduleConfig(horizon=100, curves={"activation_bits": (wrong,)}), 1)


def test_the_warm_up_is_a_fiftieth_of_the_horizon_unless_it_is_given():
    for config, scale in (
        (ScheduleConfig(horizon=1000), 1),
        (ScheduleConfig(horizon=64_000, unit="tokens"), 64),
    ):
        rates = [Schedule(config, scale).at(step).learning_rate for step in range(25)]
        assert rates[9] / rates[0] == pytest.approx(10, rel=0.02)
        assert max(rates) in rates[19:21]


def test_inputs_have_few_bits_from_a_point_on_whatever_else_the_schedule_does():
    config = ScheduleConfig(horizon=100, low_bit_from=0.95, quantizer_warmup=20)
    schedule = Schedule(config, 1)
    assert [schedule.at(step).low_bit for step in (0, 94, 95, 99)] == [False, False, True, True]
    assert [schedule.at(step).quantizer_strength for step in (5, 94, 95)] == [0.25, 1, 1]
    assert [schedule.at(step).activation_bits for step in (0, 94, 95)] == [8, 8, 8]
    assert all(Schedule(ScheduleConfig(horizon=3), 1).at(step).low_bit for step in range(3))
    by_token = Schedule(ScheduleConfig(horizon=100 * 7, unit="tokens", low_bit_from=0.95), 7)
    assert [by_token.at(step).low_bit for step in (94, 95)] == [False, True]
