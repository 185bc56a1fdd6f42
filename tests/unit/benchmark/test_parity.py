"""The gate before every number: it passes on this build, and sees what is wrong."""

import numpy as np
import pytest

from bitnet import _core
from bitnet.benchmark.parity import check_parity
from bitnet.load import load_model


@pytest.fixture
def load(golden):
    return lambda threads: load_model(golden / "packed_offline", threads=threads)


def test_this_build_passes(load):
    assert check_parity(load, _core.chosen_isa(), (1, 2, 3)) == []


def test_a_wrong_kernel(load, monkeypatch):
    monkeypatch.setattr(_core, "self_test", lambda isa: [("ternary_gemm", False, "row 3: 7, not 8")])
    (line,) = check_parity(load, "avx2", (1,))
    assert "ternary_gemm of avx2" in line
    assert "row 3: 7, not 8" in line


class OneBitOff:
    """A model whose logits differ in the last place on more than one thread."""

    def __init__(self, model):
        self._model, self.config, self.new_cache = model, model.config, model.new_cache

    def forward(self, batch):
        return [np.nextafter(logits, np.float32(np.inf)) for logits in self._model.forward(batch)]


def test_one_bit(load):
    wrong = check_parity(lambda n: load(n) if n == 1 else OneBitOff(load(n)), _core.chosen_isa(), (1, 2))
    assert len(wrong) == 3
    assert all("2 thread(s)" in line for line in wrong)
