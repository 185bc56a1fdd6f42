"""Tokens a second, and which part of the hardware's arithmetic they are: model FLOPs utilisation (MFU).

FLOPs a token of forward and backward = 6 · N + 6 · layers · query_size · sequence_length, where N counts the
weights of matrix products: projections and head, a tied one too, but no embedding look-up. The second term
is causal attention, half of the square (arXiv 2204.02311, appendix B, with that half). Recomputed activations
are not counted: MFU asks what the model needs, not what was done.
"""

from __future__ import annotations

import re
import time

import torch

from bitnet.config import ModelConfig
from bitnet.formats.tensor_names import projections

# Dense bfloat16 peaks (V100: float16) from the vendors' data sheets, FLOP/s; by words of the device's name.
_GPU_PEAKS = {
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "V100": 125e12,
}
# another chip under the same number, or a slice of one
_OTHER_CHIPS = {"Ti", "SUPER", "D", "Laptop", "MIG"}
_SIZE, _TRIES = 1024, 5


def flops_per_token(config: ModelConfig, sequence_length: int) -> float:
    """FLOPs of forward and backward for one token of a window."""
    weights = sum(rows * columns for rows, columns in projections(config).values())
    weights += config.vocab_size * config.hidden_size
    attention = config.num_hidden_layers * config.query_size * sequence_length
    return 6.0 * weights + 6.0 * attention


def peak_flops(device: torch.device, bfloat16: bool) -> float:
    """FLOP/s of one process's hardware: measured by a matrix product on a CPU, from data sheets on a GPU.

    Args:
        bfloat16: what the CPU multiplies; of a GPU it is always the bfloat16 peak.
    Returns:
        NaN for a GPU that the table does not know.
    """
    if device.type == "cuda":
        words = set(re.findall("[A-Za-z0-9]+", torch.cuda.get_device_name(device)))
        peaks = (peak for name, peak in _GPU_PEAKS.items() if set(name.split()) <= words)
        return float("nan") if words & _OTHER_CHIPS else next(peaks, float("nan"))
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    a, b = torch.ones(_SIZE, _SIZE, dtype=dtype), torch.ones(_SIZE, _SIZE, dtype=dtype)
    best = float("inf")
    for _ in range(_TRIES):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2.0 * _SIZE**3 / best
