import numpy as np
import pytest

from bitnet.quantize.weights import ternarize


def test_scale_is_the_mean_magnitude():
    codes, scale = ternarize(np.array([[0.5, -1.5], [2.0, 0.0]], dtype=np.float32))
    assert scale.dtype == np.float32
    assert scale == 1.0
    assert codes.dtype == np.int8
    assert codes.tolist() == [[0, -1], [1, 0]]  # 0.5 is a tie and goes to the even 0; 1.5 and 2 are clipped


def test_all_zero_weight_keeps_a_usable_scale():
    codes, scale = ternarize(np.zeros((4, 8), dtype=np.float32))
    assert not codes.any()
    assert scale == np.float32(1e-5)


def test_dead_rows_do_not_disturb_the_others():
    weight = np.ones((4, 8), dtype=np.float32)
    weight[0] = 1e-34
    codes, _ = ternarize(weight)
    assert not codes[0].any()
    assert (codes[1:] == 1).all()


def test_mean_is_not_summed_in_float32():
    # added one by one to 2^24 in float32, the ones vanish
    weight = np.ones((1, 1 << 20), dtype=np.float32)
    weight[0, 0] = 2.0**24
    _, scale = ternarize(weight)
    assert scale == np.float32((2.0**24 + (1 << 20) - 1) / (1 << 20))


def test_input_is_left_alone():
    weight = np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8)
    before = weight.copy()
    weight.flags.writeable = False
    ternarize(weight)
    assert np.array_equal(weight, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_is_refused(bad):
    weight = np.ones((4, 4), dtype=np.float32)
    weight[2, 3] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        ternarize(weight)


@pytest.mark.parametrize("shape", [(4,), (2, 2, 2), (0, 4)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="shape"):
        ternarize(np.ones(shape, dtype=np.float32))
