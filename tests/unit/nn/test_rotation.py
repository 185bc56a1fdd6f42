"""The Hadamard transform in PyTorch: the bits of its definition, its own inverse and its own gradient."""

import numpy as np
import pytest
import torch

from bitnet.nn.rotation import hadamard
from bitnet.nn.textbook import hadamard_matrix
from bitnet.quantize import rotation


@pytest.mark.parametrize("width", [1, 2, 6, 7, 64, 96, 768, 1024])
def test_bits_are_those_of_the_definition(width):
    x = np.random.default_rng(width).normal(size=(2, 37, width)).astype(np.float32)
    np.testing.assert_array_equal(hadamard(torch.from_numpy(x)).numpy(), rotation.hadamard(x))
    np.testing.assert_array_equal(hadamard(torch.from_numpy(x[0, 0])).numpy(), rotation.hadamard(x[0, 0]))


@pytest.mark.parametrize("width", [6, 64, 96])
def test_is_a_symmetric_orthogonal_matrix_forward_and_backward(width):
    x = torch.randn(5, width, requires_grad=True)
    y = hadamard(x)
    torch.testing.assert_close(y, x @ hadamard_matrix(width))
    torch.testing.assert_close(hadamard(y), x)
    gradient = torch.randn(5, width)
    y.backward(gradient)
    torch.testing.assert_close(x.grad, gradient @ hadamard_matrix(width).T)


def test_computes_in_float32_and_returns_gradients_in_the_type_of_x():
    x = torch.randn(3, 8).to(torch.bfloat16).requires_grad_()
    y = hadamard(x)
    y.sum().backward()
    assert y.dtype == torch.float32
    assert x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(y, hadamard(x.float()))


def test_no_token_is_no_token():
    assert hadamard(torch.zeros(0, 12)).shape == (0, 12)
