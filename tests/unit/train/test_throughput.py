"""FLOPs a token by hand and by PyTorch's own counter; peaks of the hardware that is known."""

import dataclasses
import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bitnet.config import preset
from bitnet.formats.tensor_names import count_parameters
from bitnet.nn import Transformer
from bitnet.nn.bitlinear import set_quantization
from bitnet.train.throughput import flops_per_token, peak_flops


def test_stories_by_hand():
    projections = 6 * (2 * 256 * 256 + 2 * 128 * 256 + 3 * 256 * 768)
    weights = 4096 * 256 + projections
    norm_weights = 6 * (3 * 256 + 768) + 256
    assert weights == count_parameters(preset("stories")) - norm_weights == 5_767_168
    attention = 6 * 256 * 6 * 256  # layers, query size, 6 FLOPs, window
    assert flops_per_token(preset("stories"), 256) == 6 * weights + attention == 36_962_304


@pytest.mark.parametrize("tied", [True, False])
def test_pytorch_counts_the_same_matrix_products(config, tied):
    """Its counter sees the whole square of attention; plain layers stand in, as it overlooks addmm_."""
    shape = dataclasses.replace(config.model, tie_word_embeddings=tied, hidden_size=40, head_dim=6)
    model, length, batch = Transformer(shape), 48, 3
    set_quantization(model, 0.0, 8)
    ids = torch.randint(shape.vocab_size, (batch, length + 1))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
    other_half = 6 * shape.num_hidden_layers * shape.query_size * length
    assert counter.get_total_flops() == batch * length * (flops_per_token(shape, length) + other_half)


def test_packed_and_online_models_need_the_same():
    shape = preset("stories")
    flops = {flops_per_token(shape.with_quantization(mode), 100) for mode in ("online", "offline")}
    assert len(flops) == 1


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", math.nan),
        ("NVIDIA GeForce RTX 3090 Ti", math.nan),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", math.nan),
        ("NVIDIA L40", math.nan),
        ("NVIDIA A1000", math.nan),
        ("A GPU of next year", math.nan),
    ],
)
def test_a_gpu_is_known_by_its_whole_name_or_not_at_all(monkeypatch, name, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert peak_flops(torch.device("cuda", 0), True) == pytest.approx(peak, nan_ok=True)


def test_a_cpu_is_measured():
    assert 1e8 < peak_flops(torch.device("cpu"), False) < 1e15
