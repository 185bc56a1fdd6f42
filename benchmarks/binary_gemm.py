"""One-bit and bit-serial products against NumPy's float32 product (OpenBLAS) of the same shape.

    python benchmarks/binary_gemm.py -t 2
    BITNET_ISA=avx2 python benchmarks/binary_gemm.py -t 2 --json

All in turn (A B C A B C ...) in one process with the same number of threads; medians, and ratios of each to
the float32 product of the same round. A sample is as many products as take 50 ms, after a pause and a product
that is not timed: for some 100 ms OpenBLAS's threads spin on and would take a core from what comes next.

Weights are packed before. Packing the activations (float32 to signs, int8 codes to bit planes) is part of a
product's time and also shown apart. Every product of integers is compared with the exact one first; the
ternary layer, whose result is rounded, has its tests.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SGEMM = "float32 (OpenBLAS)"
PAUSE = 0.2  # seconds
SAMPLE = 0.05  # seconds


@dataclass
class Case:
    """A product in two steps: `pack` prepares the activations for `multiply`."""

    pack: Callable[[], Any]
    multiply: Callable[[Any], NDArray[Any]]
    exact: NDArray[np.float32] | None  # what must come out; None where it is rounded


def main(
    rows: Annotated[int, typer.Option(help="Outputs.")] = 2560,
    columns: Annotated[int, typer.Option(help="Inputs.")] = 2560,
    tokens: Annotated[int, typer.Option(help="Activations.")] = 512,
    threads: Annotated[int, typer.Option("-t", help="CPU threads, of OpenBLAS too.")] = 2,
    repetitions: Annotated[int, typer.Option("-r", help="Timed rounds.")] = 25,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Measure all products and print ratios."""
    os.environ["OPENBLAS_NUM_THREADS"] = str(threads)  # read when NumPy is loaded
    import numpy as np

    cases = make_cases(rows, columns, tokens, threads)
    for name, case in cases.items():
        found = case.multiply(case.pack())
        if case.exact is not None and not np.array_equal(found, case.exact):
            raise SystemExit(f"{name} is wrong; nothing is measured")
    packing: dict[str, list[float]] = {name: [] for name in cases}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repetitions):
        for name, case in cases.items():
            pack_time, time_of_all = sample(case)
            packing[name].append(pack_time)
            seconds[name].append(time_of_all)
    result = summarise(rows, columns, tokens, threads, packing, seconds)
    if as_json:
        print(json.dumps(result))
    else:
        print_table(result)


def sample(case: Case) -> tuple[float, float]:
    """Seconds of one product's packing, and of the whole product: means over SAMPLE seconds."""
    time.sleep(PAUSE)
    case.multiply(case.pack())
    pack_time = total = 0.0
    calls = 0
    while total < SAMPLE:
        start = time.perf_counter()
        packed = case.pack()
        middle = time.perf_counter()
        case.multiply(packed)
        pack_time += middle - start
        total += time.perf_counter() - start
        calls += 1
    return pack_time / calls, total / calls


def make_cases(rows: int, columns: int, tokens: int, threads: int) -> dict[str, Case]:
    """Random weights and activations, and the products of them."""
    import numpy as np

    from bitnet import _core
    from bitnet.binary import BinaryMatrix, TernaryMatrix, pack_planes, pack_signs
    from bitnet.quantize.packing import pack_2bit

    random = np.random.default_rng(0)
    signs = random.choice(np.array([-1, 1], np.int8), (rows, columns))
    ternary = random.integers(-1, 2, (rows, columns)).astype(np.int8)
    x = random.normal(size=(tokens, columns)).astype(np.float32)
    x_signs = np.where(x > 0, 1, -1).astype(np.int8)

    def packed(values: NDArray[np.int8]) -> NDArray[np.uint8]:
        return pack_signs(values.astype(np.float32), threads=threads)

    def exact(activations: NDArray[np.int8], weight: NDArray[np.int8]) -> NDArray[np.float32]:
        # float32 holds every sum below 2^24
        return activations.astype(np.float32) @ weight.T.astype(np.float32)

    weight = signs.astype(np.float32)
    binary = BinaryMatrix(packed(signs), columns, threads=threads)
    two_binaries = TernaryMatrix(packed(ternary), packed(-ternary), columns, threads=threads)
    layer = _core.TernaryLinear(pack_2bit(ternary), 1.0, _core.LayerPool(threads, ""))
    y = np.empty((tokens, rows), np.float32)

    def run_layer(activations: NDArray[np.float32]) -> NDArray[np.float32]:
        _core.multiply_together([layer], activations, [y])
        return y

    def sign_bits() -> NDArray[np.uint8]:
        return pack_signs(x, threads=threads)

    def planes(codes: NDArray[np.int8], bits: int) -> Callable[[], NDArray[np.uint8]]:
        return lambda: pack_planes(codes, bits, threads=threads)

    cases = {
        SGEMM: Case(lambda: x, lambda values: values @ weight.T, None),
        "W1A1, XNOR-popcount": Case(sign_bits, binary.multiply_signs, exact(x_signs, signs)),
        "W1A1, tables over tokens": Case(lambda: x_signs, binary.multiply_int8, exact(x_signs, signs)),
        "ternary P - N, 1 bit": Case(sign_bits, two_binaries.multiply_signs, exact(x_signs, ternary)),
    }
    for bits in (2, 4):
        limit = 1 << (bits - 1)
        codes = random.integers(-limit, limit, (tokens, columns)).astype(np.int8)
        cases[f"ternary P - N, {bits} bits"] = Case(
            planes(codes, bits), two_binaries.multiply_planes, exact(codes, ternary)
        )
    codes = random.integers(-127, 128, (tokens, columns)).astype(np.int8)
    cases["W1A8, tables over tokens"] = Case(lambda: codes, binary.multiply_int8, exact(codes, signs))
    cases["W1A8, 8 bit planes"] = Case(planes(codes, 8), binary.multiply_planes, exact(codes, signs))
    cases["ternary int8 layer"] = Case(lambda: x, run_layer, None)
    return cases


def summarise(
    rows: int,
    columns: int,
    tokens: int,
    threads: int,
    packing: dict[str, list[float]],
    seconds: dict[str, list[float]],
) -> dict[str, Any]:
    """Medians, and the quartiles of each round's ratio of float32's time to this one's."""
    import numpy as np

    from bitnet import _core
    from bitnet.benchmark.machine import commit, cpu_name

    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    macs = rows * columns * tokens
    products = {}
    for name, times in seconds.items():
        median = statistics.median(times)
        rounds = zip(seconds[SGEMM], times, strict=True)
        products[name] = {
            "seconds": median,
            "packing_seconds": statistics.median(packing[name]),
            "gmacs_per_second": macs / median / 1e9,
            "ratio_quartiles": statistics.quantiles(plain / own for plain, own in rounds),
        }
    return {
        "rows": rows,
        "columns": columns,
        "tokens": tokens,
        "threads": threads,
        "isa": _core.chosen_isa(),
        "binary_isa": _core.BitPool(1, "").isa,
        "cpu": cpu_name(),
        "commit": commit(),
        "numpy": np.__version__,
        "blas": f"{blas['name']} {blas['version']}, {blas.get('openblas configuration', '')}",
        "products": products,
    }


def print_table(result: dict[str, Any]) -> None:
    table = Table("product", "ms", "of it packing x", "GMAC/s", "times float32", "middle half")
    for name, product in result["products"].items():
        low, ratio, high = product["ratio_quartiles"]
        table.add_row(
            name,
            f"{product['seconds'] * 1e3:.2f}",
            f"{product['packing_seconds'] * 1e3:.2f}",
            f"{product['gmacs_per_second']:,.0f}",
            f"{ratio:.1f}",
            f"{low:.1f} – {high:.1f}",
        )
    console = Console(width=110)
    console.print(
        f"{result['rows']} rows × {result['columns']} columns × {result['tokens']} tokens, "
        f"{result['threads']} threads, {result['isa']} ({result['binary_isa']}), {result['cpu']}"
    )
    console.print(table)
    console.print(f"float32: NumPy {result['numpy']}, {result['blas']}", soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
