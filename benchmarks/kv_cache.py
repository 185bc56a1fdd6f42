"""What keys and values in few bits cost and save: the tables of docs/kv_cache.md.

    python benchmarks/kv_cache.py memory
    python benchmarks/kv_cache.py speed [--isa avx2]
    python benchmarks/kv_cache.py readings FILE

`memory` fills the cache of 2B4T (30 layers, 5 key/value heads of 128) with 4,096 tokens, in a model that is
small otherwise. `speed` times attention in one layer of its shape, 20 query heads, one thread: every type in
turn, least and median of the runs. `readings` measures the embedded model's loss with other readings of the
paper in the torch engine.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
import typer
from torch import Tensor

import bitnet.nn.cache
from bitnet.benchmark.machine import memory as process_memory
from bitnet.config import ModelConfig
from bitnet.cpu_model import CpuModel
from bitnet.evaluate.perplexity import measure_perplexity, read_documents
from bitnet.formats.synthesize import synthesize
from bitnet.load import load_model
from bitnet.quant_config import QuantConfig
from bitnet.quantize.kv_cache import KvType

TYPES: list[KvType] = [name for name in get_args(KvType) if name != "auto"]
TOKENS = 4096
SMALL = ModelConfig(
    vocab_size=256,
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=30,
    num_attention_heads=5,
    num_key_value_heads=5,
    head_dim=128,
    max_position_embeddings=TOKENS + 64,
)
Reading = Callable[[Tensor, int], Tensor]
app = typer.Typer(add_completion=False)


def make(config: ModelConfig, kv_dtype: KvType, isa: str | None = None) -> CpuModel:
    with tempfile.TemporaryDirectory() as folder:
        synthesize(config, Path(folder) / "model", seed=1)
        model = load_model(Path(folder) / "model", threads=1, kv_dtype=kv_dtype, isa=isa)
    assert isinstance(model, CpuModel)
    return model


def ids(count: int) -> list[int]:
    return (np.arange(count) * 37 % SMALL.vocab_size).tolist()


@app.command()
def memory() -> None:
    """Bytes of a full cache: reserved, and by how much the process grew when it filled."""
    for kv_dtype in TYPES:
        model = make(SMALL, kv_dtype)
        model.forward([(model.new_cache(512), ids(512))])  # the workspace is there before the clock starts
        before = process_memory().anonymous
        cache = model.new_cache(TOKENS)
        model.forward([(cache, ids(TOKENS))])
        grown = process_memory().anonymous - before
        print(f"{kv_dtype:8} {cache.nbytes / TOKENS:9.0f} bytes a token; ", end="")
        print(f"MB reserved {cache.nbytes / 1e6:6.1f}, resident {grown / 1e6:6.1f}", flush=True)
        del model, cache  # or the next one would take their place


@app.command()
def speed(isa: str | None = None, runs: int = 40) -> None:
    """Attention over 4,096 positions: decode of a token, and prefill of 128."""
    config = replace(SMALL, num_hidden_layers=1, num_attention_heads=20)
    models = {kv_dtype: make(config, kv_dtype, isa) for kv_dtype in TYPES}
    caches = {kv_dtype: model.new_cache(TOKENS + 64) for kv_dtype, model in models.items()}
    for kv_dtype, model in models.items():
        model.forward([(caches[kv_dtype], ids(TOKENS))])
    for name, count, repetitions in (("decode", 1, runs), ("prefill", 128, max(1, runs // 4))):
        seconds: dict[KvType, list[float]] = {kv_dtype: [] for kv_dtype in TYPES}
        for _ in range(repetitions):
            for kv_dtype, model in models.items():
                caches[kv_dtype].truncate(TOKENS - count)
                start = model.profile["attention"]
                model.forward([(caches[kv_dtype], ids(count))])
                seconds[kv_dtype].append(model.profile["attention"] - start)
        for kv_dtype, times in seconds.items():
            ratio = min(times) / min(seconds["float16"])
            print(f"{name:8} {kv_dtype:8} {1e3 * min(times):8.3f} ms least, ", end="")
            print(f"{1e3 * statistics.median(times):8.3f} median; least / float16's {ratio:.2f}", flush=True)


def _levels(x: Tensor, low: Tensor, high: Tensor, bits: int) -> Tensor:
    """2^bits values from low to high, both included."""
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-9)
    return ((x - low) / step).round().clamp(0, 2**bits - 1) * step + low


def around_zero(x: Tensor, bits: int) -> Tensor:
    most = x.abs().amax(-1, keepdim=True)
    return _levels(x, -most, most, bits)


def from_minimum(x: Tensor, bits: int) -> Tensor:
    return _levels(x, x.amin(-1, keepdim=True), x.amax(-1, keepdim=True), bits)


def bins_around_zero(x: Tensor, bits: int) -> Tensor:
    most = x.abs().amax(-1, keepdim=True) * (1 - 2.0**-bits)  # the middle of the last bin
    return _levels(x, -most, most, bits)


def signed(x: Tensor, bits: int) -> Tensor:
    step = (x.abs().amax(-1, keepdim=True) / (2 ** (bits - 1) - 1)).clamp(min=1e-9)
    return (x / step).round() * step


@app.command()
def readings(file: Path) -> None:
    """Loss of the embedded model, and by how much each reading changes it."""
    documents = read_documents(file)
    model = load_model(engine="torch", threads=1)
    plain = model.config
    defined: Reading = bitnet.nn.cache.round_heads

    def loss(bits: int, reading: Reading = defined) -> float:
        bitnet.nn.cache.round_heads = reading
        model.transformer.config = replace(
            plain, quantization=QuantConfig(plain.quantization.linear_class, kv_bits=bits)
        )
        result = measure_perplexity(model, documents)
        return result.nats / result.tokens

    base = loss(16)
    print(f"float32 {base:.5f}")
    for name, reading in {
        "min x subtracted, bins (the definition)": defined,
        "min x subtracted, levels at both ends": from_minimum,
        "offset by max|x|, bins": bins_around_zero,
        "offset by max|x|, levels at both ends": around_zero,
        "signed": signed,
    }.items():
        changes = [f"{bits} bits {loss(bits, reading) / base - 1:+.3%}" for bits in (8, 4, 3)]
        print(f"{name:40} {', '.join(changes)}", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    app()
