"""Norms inside projections against their definition."""

import numpy as np
import pytest
import torch

from bitnet.nn.norm import InnerNorm
from bitnet.quantize.norms import normalise


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("groups", [1, 3])
def test_equals_the_definition(kind, groups):
    random = np.random.default_rng(groups)
    x = (random.normal(size=(2, 7, 33)) * 3 + 1).astype(np.float32)
    x[0, 0] = 0
    norm = InnerNorm(33, kind, 1e-5, groups)
    with torch.no_grad():
        norm.weight.copy_(torch.from_numpy(random.normal(size=33).astype(np.float32)))
    weight = norm.weight.detach().numpy().reshape(groups, -1)
    expected = normalise(x.reshape(2, 7, groups, -1), weight, kind, 1e-5).reshape(x.shape)
    np.testing.assert_allclose(norm(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-6, atol=1e-7)


def test_computes_in_float32():
    x = torch.randn(3, 8).to(torch.bfloat16)
    norm = InnerNorm(8, "layer", 1e-5)
    assert torch.equal(norm(x), norm(x.float()))
