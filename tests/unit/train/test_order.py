"""The order of windows: every one once a pass, a function of seed and step alone, shares and ends kept."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import InputError
from bitnet.train.order import Batches, permute
from bitnet.train.shards import Corpus


def ring(tokens, first=0):
    return Corpus.from_ids(np.arange(first, first + tokens, dtype=np.uint32), f"ring of {tokens}")


def windows(batches):
    return np.array([batches.window(position) for position in range(len(batches))])


@given(size=st.integers(1, 300), key=st.integers(0, 2**64 - 1))
def test_a_permutation_sends_every_place_to_another(size, key):
    assert sorted(permute(place, size, key) for place in range(size)) == list(range(size))


def test_permutations_of_many_keys_send_a_place_everywhere():
    for size in (5, 100):
        hits = np.bincount([permute(2, size, key) for key in range(200 * size)], minlength=size)
        assert ((hits > 130) & (hits < 270)).all()  # 200 expected; beyond 5 standard deviations


def test_the_order_is_the_same_on_every_machine():
    """Recorded: a change of these numbers breaks the resume of every run under way."""
    assert [permute(place, 7, 1) for place in range(7)] == [5, 1, 3, 6, 4, 0, 2]
    batches = Batches([ring(1000), ring(3000)], [(2, 0.5), (1.5, 1)], 10, seed=3)
    assert batches.batch(0, 4)[0][:, 0].tolist() == [853, 2470, 613, 83]


@given(
    tokens=st.integers(12, 300),
    length=st.integers(1, 11),
    passes=st.integers(1, 4),
    seed=st.integers(0, 2**70),
)
def test_each_pass_reads_each_window_once(tokens, length, passes, seed):
    batches = Batches([ring(tokens)], [(passes, 1.0)], length, seed)
    each = tokens // length
    assert len(batches) == passes * each
    inputs, targets = batches.batch(0, len(batches))
    np.testing.assert_array_equal(np.diff(inputs, axis=1) % tokens, 1 % tokens)
    np.testing.assert_array_equal(targets, (inputs + 1) % tokens)
    for pass_ in range(passes):
        read = inputs[pass_ * each : (pass_ + 1) * each]
        assert len(np.unique(read)) == each * length


def test_each_pass_cuts_at_another_offset_in_another_order():
    batches = Batches([ring(10_007)], [(3, 1.0)], 10, 0)
    starts = batches.batch(0, len(batches))[0][:, 0].reshape(3, 1000)
    assert len({tuple(sorted(row)) for row in starts}) == 3
    assert len({tuple((row - row.min()) // 10) for row in starts}) == 3


@given(
    sources=st.lists(
        st.tuples(
            st.integers(12, 400), st.floats(0.01, 2), st.sampled_from([0.1, 0.25, 1 / 3, 0.5, 0.77, 1.0])
        ),
        max_size=3,
    ),
    room=st.floats(1, 2),
    length=st.integers(3, 9),
    seed=st.integers(0, 99),
)
def test_every_window_comes_once_and_no_source_after_its_end(sources, room, length, seed):
    needed = sum((passes * tokens / length + 1) / until for tokens, passes, until in sources)
    sources = [(1000, room * (needed + 1) / (1000 // length), 1.0), *sources]
    shares = [(passes, until) for _, passes, until in sources]
    batches = Batches([ring(tokens) for tokens, _, _ in sources], shares, length, seed)
    order = windows(batches)
    for source, (tokens, passes, until) in enumerate(sources):
        places = np.flatnonzero(order[:, 0] == source)
        total = max(1, round(passes * (tokens // length)))
        assert order[places, 1].tolist() == list(range(total))
        assert places[-1] < until * len(batches) + 1e-3


@given(totals=st.lists(st.integers(1, 4000), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_every_stretch_holds_each_share(totals, seed):
    batches = Batches([ring(total * 2 + 1) for total in totals], [(1, 1)] * len(totals), 2, seed)
    order = windows(batches)[:, 0]
    assert np.bincount(order).tolist() == totals
    for end in range(1024, len(order), 1024):
        done = np.bincount(order[:end], minlength=len(totals))
        # A block may end a window a source before the stretch does.
        assert np.abs(done - end * np.array(totals) / len(order)).max() <= len(totals)


def test_a_source_that_ends_early_is_spread_evenly_and_the_rest_makes_room():
    batches = Batches([ring(80_000), ring(20_000, 10**6)], [(1, 1), (1, 0.5)], 4, 0)
    early = (batches.batch(0, len(batches))[0][:, 0] >= 10**6).reshape(25, 1000).sum(axis=1)
    assert np.abs(early[:12] - 400).max() < 60  # 5,000 windows over 12,500 positions
    assert early[13:].sum() == 0


@given(step=st.integers(0, 400), size=st.integers(1, 9), cuts=st.lists(st.integers(0, 9), max_size=3))
def test_a_batch_depends_on_no_history_and_on_no_division(step, size, cuts):
    def fresh():
        return Batches([ring(900), ring(333, 10**6)], [(3, 1), (1.5, 0.5)], 7, 5)

    used = fresh()
    for before in (step + 1, 3, step):
        expected = used.batch(before, size)
    edges = sorted({0, size, *(min(cut, size) for cut in cuts)})
    parts = [fresh().batch(step, size, slice(a, b)) for a, b in pairwise(edges)]
    for mine, theirs in zip(expected, zip(*parts, strict=True), strict=True):
        assert mine.dtype == np.int64
        assert mine.shape == (size, 7)
        np.testing.assert_array_equal(mine, np.concatenate(theirs))


def test_another_size_of_batch_reads_the_same_order():
    batches = Batches([ring(5000)], [(2, 1)], 7, 5)
    np.testing.assert_array_equal(batches.batch(3, 8)[0][4:], batches.batch(7, 4)[0])


def test_beyond_the_end_it_starts_again():
    batches = Batches([ring(103)], [(1, 1)], 10, 0)
    np.testing.assert_array_equal(batches.batch(1, 10)[0], batches.batch(0, 10)[0])
    np.testing.assert_array_equal(batches.batch(10**9, 10)[0], batches.batch(0, 10)[0])
    both = batches.batch(1, 7)[0]
    np.testing.assert_array_equal(both[3:], batches.batch(0, 4)[0])


def test_another_seed_is_another_order():
    first, other = (Batches([ring(1000)], [(1, 1)], 10, seed).batch(0, 100)[0] for seed in (0, 1))
    assert not np.array_equal(first, other)


def test_a_billion_windows_need_no_more_memory_than_a_thousand():
    class Endless(Corpus):
        def __len__(self):
            return 10**15

        def take(self, start, length):
            return np.arange(start, start + length)

    endless = Endless([np.zeros(1, np.uint16)], [np.zeros(1, np.uint64)], "endless", (0,), 0)
    batches = Batches([endless, ring(5000)], [(3.5, 1), (10**6, 0.5)], 1000, 0)
    assert len(batches) == 3_500_000_000_000 + 5_000_000
    inputs, _ = batches.batch(10**9, 512)
    assert len(np.unique(inputs[:, 0])) == 512


def test_texts_shorter_than_a_sequence_are_refused_by_name():
    for tokens in (1, 10):
        with pytest.raises(InputError, match=rf"ring of {tokens}: {tokens} tokens do not fill"):
            Batches([ring(100), ring(tokens)], [(1, 1), (1, 1)], 10, 0)
    assert len(Batches([ring(11)], [(1, 1)], 10, 0)) == 1


@pytest.mark.parametrize(
    ("shares", "reason"),
    [
        ([(1, 0.5), (1, 0.9)], "ring of 100, ring of 200: all end"),
        ([(1, 1), (5, 0.5)], "ring of 100: 10 windows of text do not fill 55 of the run's 110"),
    ],
)
def test_shares_that_leave_a_part_without_text_are_refused(shares, reason):
    with pytest.raises(InputError, match=reason):
        Batches([ring(100), ring(200)], shares, 10, 0)
