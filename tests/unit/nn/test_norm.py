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


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("shape", [(12,), (3, 12), (2, 3, 12)])
def test_gradients_are_those_of_differences(kind, shape):
    """In float64, where x + h and x - h tell one digit after the other."""
    torch.manual_seed(0)
    x, weight = torch.randn(shape, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    norm = InnerNorm(12, kind, 0.1, 3)
    with torch.no_grad():
        norm.weight.copy_(weight)
    upstream = torch.randn(shape)
    x32 = x.float().requires_grad_()
    norm(x32).backward(upstream)

    def loss(x, weight):
        parts = x.unflatten(-1, (3, 4))
        if kind == "layer":
            parts = parts - parts.mean(-1, keepdim=True)
        parts = parts / (parts.square().mean(-1, keepdim=True) + 0.1).sqrt()
        return (parts.flatten(-2) * weight * upstream).sum()

    for values, found in ((x, x32.grad), (weight, norm.weight.grad)):
        for index in np.ndindex(*values.shape):
            before = values[index].item()
            sides = []
            for step in (1e-5, -1e-5):
                values[index] = before + step
                sides.append(loss(x, weight).item())
            values[index] = before
            difference = (sides[0] - sides[1]) / 2e-5
            assert found[index].item() == pytest.approx(difference, rel=1e-3, abs=1e-5)
