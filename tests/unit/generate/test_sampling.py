import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import FormatError, InputError
from bitnet.generate.sampling import Sampler, SamplingParams, candidates, draw


def by_sorting(logits, params):
    """Steps 2 to 5 as their definition says, with one stable sort and no shortcut."""
    scaled = ((logits - logits.max()) / np.float32(params.temperature)).astype(np.float32)
    order = sorted(range(logits.size), key=lambda token: (-scaled[token], token))
    if params.top_k:
        least = scaled[order[min(params.top_k, len(order)) - 1]]
        order = [token for token in order if scaled[token] >= least]
    weight = {token: float(np.exp(scaled[token])) for token in order}
    if params.top_p < 1:
        needed, kept, reached = params.top_p * sum(weight.values()), [], 0.0
        for token in order:
            if reached >= needed:
                break
            kept.append(token)
            reached += weight[token]
        order = kept
    if params.min_p > 0:
        order = [token for token in order if weight[token] >= params.min_p]
    ids = np.array(sorted(order))
    return ids, np.array([weight[token] for token in ids])


@st.composite
def cases(draw_value):
    seed = draw_value(st.integers(0, 2**32 - 1))
    size = draw_value(st.integers(1, 400))
    logits = np.random.default_rng(seed).normal(0, draw_value(st.sampled_from([0.1, 2, 8])), size)
    if draw_value(st.booleans()):
        logits = np.round(logits)  # many equals
    params = SamplingParams(
        temperature=draw_value(st.sampled_from([0.3, 0.6, 1.0, 1.7])),
        top_k=draw_value(st.sampled_from([0, 1, 7, 50, 1000])),
        # Irrational-looking, so that no sum of equal weights meets the threshold up to rounding.
        top_p=draw_value(st.sampled_from([0.0123457, 0.5123457, 0.9123457, 0.9990123, 1.0])),
        min_p=draw_value(st.sampled_from([0.0, 0.0612341, 0.5012341])),
    )
    return logits.astype(np.float32), params


@given(cases(), st.floats(0, 1, exclude_max=True))
def test_filters_keep_what_sorting_everything_keeps(case, uniform):
    logits, params = case
    ids, weights = candidates(logits, params)
    expected_ids, expected_weights = by_sorting(logits, params)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected_weights, rtol=1e-6)
    running = np.cumsum(expected_weights) / expected_weights.sum()
    if np.abs(running - uniform).min() > 1e-6:  # nearer than rounding, both neighbours are right
        assert draw(ids, weights, uniform) == expected_ids[np.searchsorted(running, uniform, side="right")]


def test_draws_follow_the_probabilities():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    sampler = Sampler(SamplingParams(temperature=1, top_p=1, seed=0), 4)
    counts = np.bincount([sampler.sample(logits) for _ in range(20000)], minlength=4)
    np.testing.assert_allclose(counts / 20000, [0.5, 0.3, 0.15, 0.05], atol=0.015)


def test_greedy_takes_the_lowest_id_among_equals():
    logits = np.array([1, 3, 3, 2], dtype=np.float32)
    assert Sampler(SamplingParams(temperature=0), 4).sample(logits) == 1


@pytest.mark.parametrize("temperature", [1e-50, 1e-30, 1e-5])
def test_a_tiny_temperature_is_almost_greedy(temperature):
    logits = np.array([1, 3, 2.999, 2], dtype=np.float32)
    sampler = Sampler(SamplingParams(temperature=temperature, top_p=1, seed=0), 4)
    assert {sampler.sample(logits) for _ in range(50)} == {1}


def test_repetition_penalty_pushes_down_prompt_and_answer():
    logits = np.array([2.0, 1.9, -1.0, -1.1], dtype=np.float32)
    untouched = logits.copy()
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=1.2), 4, prompt=[0])
    assert sampler.sample(logits) == 1  # 2.0 / 1.2 < 1.9
    assert sampler.sample(logits) == 0  # 1.9 / 1.2 < 2.0 / 1.2
    negative = Sampler(SamplingParams(temperature=0, repetition_penalty=1.2), 2, prompt=[0])
    assert negative.sample(np.array([-1.0, -1.1], dtype=np.float32)) == 1  # -1.0 * 1.2 < -1.1
    np.testing.assert_array_equal(logits, untouched)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_finite_are_refused(value, temperature):
    logits = np.array([0, value, 1], dtype=np.float32)
    with pytest.raises(FormatError, match="logit of id 1"):
        Sampler(SamplingParams(temperature=temperature), 3).sample(logits)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_p", 0),
        ("top_p", 1.01),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0),
        ("repetition_penalty", float("inf")),
        ("seed", -1),
        ("seed", True),
        ("stop", ("a", "")),
        ("stop", (3,)),
        ("max_tokens", 0),
    ],
)
def test_parameters_out_of_range_are_named(parameter, value):
    with pytest.raises(InputError, match=f"^{parameter} is "):
        SamplingParams(**{parameter: value})


def test_a_single_stop_string_is_one_string():
    assert SamplingParams(stop="END").stop == ("END",)
