"""Bad steps are skipped, counted, and end the run when they come in a row."""

import math

import pytest

from bitnet.errors import FormatError
from bitnet.train.config import GuardConfig
from bitnet.train.guard import Guard


@pytest.mark.parametrize(
    ("loss", "norm"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)]
)
def test_what_is_not_finite_is_bad(loss, norm):
    guard = Guard(GuardConfig())
    assert not guard.accepts(loss, norm)
    assert guard.accepts(1.0, 1e30)
    assert (guard.skipped, guard.in_a_row) == (1, 0)


def test_patience_ends_with_the_third_in_a_row():
    guard = Guard(GuardConfig())
    seen = []
    for loss in (math.nan, math.nan, 1.0, math.nan, math.nan, math.nan):
        guard.accepts(loss, 1.0)
        seen.append(guard.exhausted)
    assert seen == [False] * 5 + [True]
    assert guard.skipped == 5


def test_a_spike_is_measured_against_the_mean_of_good_steps():
    guard = Guard(GuardConfig(spike=5))
    assert all(guard.accepts(1.0, norm) for norm in [100.0] + [1.0] * 400)
    assert guard.accepts(1.0, 4.0)
    assert not guard.accepts(1.0, 1000.0)
    assert not guard.accepts(1.0, 1000.0)


def test_a_restored_guard_judges_alike():
    first, second = Guard(GuardConfig(spike=2)), Guard(GuardConfig(spike=2))
    for step in range(30):
        first.accepts(1.0, 1.0 + step % 3)
    first.accepts(math.nan, 1.0)
    second.restore(first.state(), "run.json")
    for norm in (2.0, 5.0, 4.1, math.nan, 3.0):
        assert first.accepts(1.0, norm) == second.accepts(1.0, norm)
    assert first.state() == second.state()
    with pytest.raises(FormatError, match=r"run\.json"):
        second.restore({"skipped": 1}, "run.json")
