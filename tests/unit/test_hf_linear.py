"""The plug-in's modules: integers against plain products, sharing against layers alone, hostile input."""

import copy
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

pytest.importorskip("transformers")
from bitnet import _core
from bitnet.errors import UnsupportedError
from bitnet.hf.linear import KernelHead, KernelLinear, layer_pool, share_input
from bitnet.hf.mapped_pages import PageReleaser
from bitnet.nn.quantizers import int8_codes
from bitnet.quantize.packing import pack_2bit


def make_layer(rows, columns, seed=0, scale=1.0, **options):
    codes = np.random.default_rng(seed).integers(-1, 2, size=(rows, columns)).astype(np.int8)
    layer = KernelLinear(columns, rows, **options)
    layer.weight = torch.from_numpy(pack_2bit(codes))
    layer.weight_scale = torch.tensor([scale])
    return layer, torch.from_numpy(codes)


def whole_numbers(shape, seed=1):
    """Numbers that the quantiser leaves as they are: every row's largest is 127."""
    x = torch.from_numpy(np.random.default_rng(seed).integers(-127, 128, size=shape).astype(np.float32))
    x[..., 0] = 127
    return x


@pytest.mark.parametrize("shape", [(4, 1), (8, 3), (12, 127), (64, 130), (256, 512), (1400, 65)])
@pytest.mark.parametrize("tokens", [1, 5, 70, 600])
def test_products_of_whole_numbers_are_exact(shape, tokens):
    layer, codes = make_layer(*shape)
    x = whole_numbers((tokens, shape[1]))
    assert torch.equal(layer(x).int(), x.int() @ codes.int().T)


@pytest.mark.parametrize("shape", [(7,), (0, 7), (2, 0, 7), (3, 7), (2, 3, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_any_shape_and_type(shape, dtype):
    layer, codes = make_layer(12, 7, scale=0.37, bias=True)
    layer.bias = torch.randn(12)
    x = torch.randn(shape).to(dtype)
    x_codes, s = int8_codes(x) if x.numel() else (x.float(), torch.ones(*shape[:-1], 1))
    expected = (x_codes @ codes.float().T * (layer.weight_scale / s)).to(dtype) + layer.bias.to(dtype)
    found = layer(x)
    assert found.dtype is dtype
    torch.testing.assert_close(found, expected, rtol=1e-6 if dtype.itemsize > 2 else 1e-2, atol=1e-2)


def test_a_scale_that_divides():
    layer, _ = make_layer(8, 6, scale=4.0, scale_divides=True)
    twin, _ = make_layer(8, 6, scale=0.25)
    x = torch.randn(3, 6)
    assert torch.equal(layer(x), twin(x))


def test_not_contiguous_inputs_and_weights():
    layer, codes = make_layer(8, 6)
    layer.weight = layer.weight.T.contiguous().T
    x = whole_numbers((6, 6)).T
    x = torch.cat([x, torch.full((6, 1), 127.0)], dim=1)[:, 1:]
    assert torch.equal(layer(x).int(), x.int() @ codes.int().T)


def test_what_is_changed_later_counts():
    layer, codes = make_layer(8, 6)
    x = whole_numbers((2, 6))
    before = layer(x)
    layer.weight_scale.mul_(2)
    assert torch.equal(layer(x), 2 * before)
    opposite = torch.from_numpy(pack_2bit(-codes.numpy()))
    layer.load_state_dict({"weight": opposite, "weight_scale": torch.ones(1)})
    assert torch.equal(layer(x), -before)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_copies_stand_alone(again):
    first, second = make_layer(8, 6)[0], make_layer(4, 6, seed=5)[0]
    share_input([first, second])
    x = torch.randn(2, 6)
    expected = first(x)
    copied = again(torch.nn.ModuleList([first, second]))
    first.weight.fill_(0x55)
    assert torch.equal(copied[0](x), expected)
    assert copied[0]._shared is copied[1]._shared is not first._shared


def test_gradients_go_straight_through_the_rounding():
    layer, codes = make_layer(12, 7, scale=0.5, bias=True)
    x = torch.randn(2, 3, 7, requires_grad=True)
    y = layer(x)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    torch.testing.assert_close(x.grad, gradient @ codes.float() * 0.5)
    assert torch.equal(y.detach(), layer(x.detach()))


class TestSharing:
    def layers(self):
        made = [make_layer(rows, 130, seed=rows)[0] for rows in (8, 4, 12)]
        alone = copy.deepcopy(made)
        share_input(made)
        return made, alone

    @pytest.mark.parametrize("tokens", [1, 9])
    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 0), (0, 0, 0)])
    def test_changes_no_bit(self, tokens, order):
        shared, alone = self.layers()
        for seed in range(2):
            x = torch.randn(tokens, 130, generator=torch.Generator().manual_seed(seed))
            for index in order:
                assert torch.equal(shared[index](x), alone[index](x))

    def test_another_input_or_a_changed_one_is_computed_anew(self):
        shared, alone = self.layers()
        x = torch.randn(3, 130)
        shared[0](x)
        assert torch.equal(shared[1](x.clone() + 1), alone[1](x + 1))
        shared[0](x)
        x.add_(1)
        assert torch.equal(shared[2](x), alone[2](x))

    def test_inference_mode_and_gradients(self):
        shared, alone = self.layers()
        with torch.inference_mode():
            x = torch.randn(3, 130)
            shared[0](x)
            x.mul_(-3).add_(1)
            assert torch.equal(shared[1](x), alone[1](x))
        x = torch.randn(3, 130, requires_grad=True)
        sum(layer(x).sum() for layer in shared).backward()
        y = x.detach().clone().requires_grad_()
        sum(layer(y).sum() for layer in alone).backward()
        torch.testing.assert_close(x.grad, y.grad)

    def test_nothing_is_held_once_all_have_asked(self):
        shared, _ = self.layers()
        x = torch.randn(3, 130)
        for layer in shared:
            layer(x)
        assert shared[0]._shared._held is None

    def test_unlike_layers_do_not_share(self):
        first, second, wider = make_layer(8, 6)[0], torch.nn.Linear(6, 8), make_layer(8, 7)[0]
        normed, _ = make_layer(8, 6, rms_norm=torch.nn.RMSNorm(6))
        for other in (second, wider, normed, None):
            share_input([first, other])
            assert first._shared is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1, 33), (8, 33), (9, 33), (0, 33), (33,)])
def test_the_head_computes_what_a_linear_layer_does(dtype, shape):
    torch.manual_seed(0)
    head = KernelHead(33, 101, bias=False, dtype=dtype)
    x = torch.randn(shape, dtype=dtype)
    with torch.no_grad():
        found = head(x)
    assert found.dtype is dtype
    expected = F.linear(x.double(), head.weight.detach().double())
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    head(x.requires_grad_()).sum().backward()
    assert x.grad.shape == x.shape
    assert head.weight.grad is not None


def test_other_devices_are_refused():
    layer, _ = make_layer(8, 6)
    with pytest.raises(UnsupportedError, match=r"on meta.*bitnet\.hf\.disable"):
        layer(torch.empty(2, 6, device="meta"))


def test_a_layer_that_cannot_be_packed_is_refused():
    with pytest.raises(UnsupportedError, match="multiple of 4"):
        KernelLinear(8, 6)


def native(rows, columns):
    return _core.TernaryLinear(np.full((rows // 4, columns), 0x55, np.uint8), 1.0, layer_pool())


def floats(*shape):
    return np.zeros(shape, np.float32)


@pytest.mark.parametrize(
    ("layers", "x", "outputs"),
    [
        ([], floats(2, 6), []),
        ([(8, 6)], floats(2, 6), []),
        ([(8, 6)], floats(2, 5), [floats(2, 8)]),
        ([(8, 6)], floats(2, 6), [floats(2, 7)]),
        ([(8, 6)], floats(2, 6), [floats(3, 8)]),
        ([(8, 6), (8, 7)], floats(2, 6), [floats(2, 8), floats(2, 8)]),
        ([(8, 6)], np.zeros((2, 6)), [floats(2, 8)]),
        ([(8, 6)], floats(6), [floats(1, 8)]),
        ([(8, 6)], floats(4, 6)[::2], [floats(2, 8)]),
        ([(8, 6)], floats(2, 6), [floats(2, 16)[:, ::2]]),
        ([None], floats(2, 6), [floats(2, 8)]),
    ],
)
def test_native_products_refuse_arrays_that_do_not_fit(layers, x, outputs):
    layers = [None if shape is None else native(*shape) for shape in layers]
    with pytest.raises((ValueError, TypeError)):
        _core.multiply_together(layers, x, outputs)


@pytest.mark.parametrize(
    ("x", "weight", "y"),
    [
        (floats(2, 6), floats(8, 5), floats(2, 8)),
        (floats(2, 6), floats(8, 6), floats(2, 7)),
        (floats(2, 6), floats(8, 6), floats(3, 8)),
        (floats(2, 6), np.zeros((8, 6)), floats(2, 8)),
        (floats(2, 6), np.zeros((8, 6), np.int16), floats(2, 8)),
    ],
)
def test_native_heads_refuse_arrays_that_do_not_fit(x, weight, y):
    with pytest.raises((ValueError, TypeError, RuntimeError)):
        _core.head_product(layer_pool(), x, weight, y)


@pytest.mark.parametrize("threads", [0, 1025])
def test_impossible_numbers_of_threads(threads):
    with pytest.raises(ValueError, match="threads"):
        _core.LayerPool(threads, "")


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back on Linux only")
class TestPageReleaser:
    def resident(self, tensor):
        """KiB in memory of the mapping that holds the tensor."""
        inside = False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            parts = line.split()
            if not parts[0].endswith(":"):
                first, last = (int(part, 16) for part in parts[0].split("-"))
                inside = first <= tensor.data_ptr() < last
            elif inside and parts[0] == "Rss:":
                return int(parts[1])
        return None

    def mapped(self, tmp_path):
        values = torch.arange(1 << 20, dtype=torch.int32)
        save_file({"a": values, "b": values + 1}, tmp_path / "t.safetensors")
        with safe_open(tmp_path / "t.safetensors", "pt") as file:
            return values, file.get_tensor("a"), file.get_tensor("b")

    def release(self, *tensors):
        pages = PageReleaser()
        for tensor in tensors:
            pages.add(tensor)
        pages.finish()

    def test_pages_go_and_come_back(self, tmp_path):
        values, a, b = self.mapped(tmp_path)
        assert torch.equal(a, values)
        assert torch.equal(b, values + 1)
        before = self.resident(a)
        self.release(a)
        assert self.resident(a) < before - 3500  # of 4096 KiB
        assert torch.equal(a, values)

    def test_what_was_written_is_not_lost(self, tmp_path):
        values, a, b = self.mapped(tmp_path)
        a[5] = -1
        own = torch.arange(1 << 20)
        self.release(a, b, own)
        assert a[5] == -1
        assert torch.equal(b, values + 1)
        assert torch.equal(own, torch.arange(1 << 20))
