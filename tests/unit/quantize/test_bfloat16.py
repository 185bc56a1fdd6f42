import numpy as np

from bitnet.quantize.bfloat16 import narrow, round_to_bfloat16, widen

EVERY_PATTERN = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def test_every_bfloat16_survives_widening_and_narrowing():
    wide = widen(EVERY_PATTERN)
    nan = np.isnan(wide)
    assert np.array_equal(narrow(wide)[~nan], EVERY_PATTERN[~nan])
    assert np.isnan(widen(narrow(wide[nan]))).all()


def test_ties_go_to_even_and_others_to_the_nearest():
    one = 0x3F800000  # 1.0; the last bfloat16 bit is 0x10000
    bits = np.array([one + 0x8000, one + 0x18000, one + 0x7FFF, one + 0x8001], dtype=np.uint32)
    assert narrow(bits.view(np.float32)).tolist() == [0x3F80, 0x3F82, 0x3F80, 0x3F81]


def test_overflow_is_infinity_and_nan_stays_nan():
    assert narrow(np.float32(3.4e38)) == 0x7F80
    low_nan = np.array([0x7F800001, 0xFFFFFFFF], dtype=np.uint32).view(np.float32)
    assert np.isnan(widen(narrow(low_nan))).all()


def test_shape_is_kept():
    assert narrow(np.float32(1)).shape == ()
    assert round_to_bfloat16(np.ones((2, 3, 4), dtype=np.float32)).shape == (2, 3, 4)
    assert narrow(np.ones((4, 6), dtype=np.float32)[:, ::2]).shape == (4, 3)
