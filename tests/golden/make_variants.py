"""Makes variants.npz: what every recipe gives for small inputs, from the papers' formulas, plainly.

    python tests/golden/make_variants.py

Nothing of the library computes here: sums are Python loops in float64, the Hadamard matrix is written out, an
E2M1 value is looked up among all of them. float32 appears only where the definition rounds to it. Inputs are
chosen so that no value lies near a rounding tie; integers are then the same whatever the order of sums.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

TOKENS, ROWS, COLUMNS = 5, 24, 40
MARGIN = 2e-4  # of a step; a float32 sum in another order moves a value by less than 1e-5 of it
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]

# name -> (weights, row groups, column groups, inputs, rotate, norm)
RECIPES = {
    "b1.58": ("ternary", 1, 1, "int8", False, None),
    "rows": ("ternary", ROWS, 1, "int8", False, None),
    "row groups": ("ternary", 4, 1, "int8", False, None),
    "column groups": ("ternary", 1, 2, "int8", False, None),
    "rms inside": ("ternary", 1, 1, "int8", False, "rms"),
    "w1a8": ("binary", 1, 1, "int8", False, "layer"),
    "w1a8 groups": ("binary", 1, 4, "int8", False, "layer"),
    "w1a1": ("binary", 1, 1, "int1", False, "layer"),
    "top50": ("ternary", 1, 1, "int8-top50", False, None),
    "int4": ("ternary", 1, 1, "int4", False, None),
    "fp4": ("ternary", 1, 1, "fp4", False, None),
    "v2-a8": ("ternary", 1, 1, "int8", True, None),
    "v2": ("ternary", 1, 1, "int4", True, None),
}


def f32(value: float) -> float:
    return float(np.float32(value))


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def weight_block(block: list[list[float]], kind: str) -> tuple[list[list[int]], float]:
    flat = [w for row in block for w in row]
    scale = f32(max(mean([abs(w) for w in flat]), 1e-5))
    if kind == "binary":
        middle = mean(flat)
        assert all(abs(w - middle) > MARGIN * scale for w in flat)
        return [[1 if w > middle else -1 for w in row] for row in block], scale
    for w in flat:
        assert abs(abs(w / scale) - 0.5) > MARGIN
    return [[0 if abs(w) < scale / 2 else 1 if w > 0 else -1 for w in row] for row in block], scale


def nearest(value: float, low: int, high: int) -> int:
    assert abs(abs(value - math.floor(value)) - 0.5) > MARGIN or not low <= value <= high
    return max(low, min(high, round(value)))


def two_e2m1(value: float) -> int:
    """Twice the E2M1 number next to a value between -6 and 6."""
    ordered = sorted(range(len(E2M1)), key=lambda i: abs(E2M1[i] - abs(value)))
    near, next_ = (abs(E2M1[i] - abs(value)) for i in ordered[:2])
    assert next_ - near > MARGIN
    return int(2 * E2M1[ordered[0]]) * (1 if value > 0 else -1)


def quantize(x: list[float], kind: str) -> tuple[list[int], float]:
    largest = max(max(abs(v) for v in x), 1e-5)
    average = max(mean([abs(v) for v in x]), 1e-5)
    if kind == "int8-top50":
        kept = sorted(range(len(x)), key=lambda i: -abs(x[i]))[: math.ceil(len(x) / 2)]
        x, kind = [v if i in kept else 0.0 for i, v in enumerate(x)], "int8"
    if kind == "int8":
        return [nearest(v * 127 / largest, -128, 127) for v in x], 127 / largest
    if kind == "int4":
        return [nearest(v * math.sqrt(7) / average, -8, 7) for v in x], math.sqrt(7) / average
    if kind == "fp4":
        return [two_e2m1(v * 6 / largest) for v in x], 12 / largest
    assert kind == "int1"
    return [1 if v > 0 else -1 for v in x], 1 / average


def rotate(x: list[float]) -> list[float]:
    """A block-diagonal Sylvester matrix, written out: entry (i, j) is (-1)^(bits that i and j share)."""
    block = 1
    while len(x) % (2 * block) == 0:
        block *= 2
    result = []
    for start in range(0, len(x), block):
        part = x[start : start + block]
        for i in range(block):
            signed = [v * (-1) ** bin(i & j).count("1") for j, v in enumerate(part)]
            result.append(math.fsum(signed) / math.sqrt(block))
    return result


def normalise(x: list[float], weight: list[float], kind: str) -> list[float]:
    if kind == "layer":
        middle = mean(x)
        x = [v - middle for v in x]
    root = math.sqrt(mean([v * v for v in x]) + 1e-6)
    return [v / root * w for v, w in zip(x, weight, strict=True)]


def run(x: np.ndarray, weight: np.ndarray, norm: np.ndarray, recipe: tuple) -> dict[str, np.ndarray]:
    kind, row_groups, column_groups, inputs, turned, inside = recipe
    height, width = ROWS // row_groups, COLUMNS // column_groups
    codes = np.zeros((ROWS, COLUMNS), np.int8)
    scales = []
    for r in range(row_groups):
        for c in range(column_groups):
            place = np.s_[r * height : (r + 1) * height, c * width : (c + 1) * width]
            part, scale = weight_block(weight[place].tolist(), kind)
            codes[place] = part
            scales.append(scale)
    x_codes = np.zeros((TOKENS, column_groups, width), np.int8)
    x_scales = np.zeros((TOKENS, column_groups, 1))
    sums = np.zeros((TOKENS, column_groups, ROWS), np.int32)
    y = np.zeros((TOKENS, ROWS))
    for t in range(TOKENS):
        for g in range(column_groups):
            columns = np.s_[g * width : (g + 1) * width]
            part = x[t, columns].tolist()
            if inside:
                part = normalise(part, norm[columns].tolist(), inside)
            if turned:
                part = rotate(part)
            x_codes[t, g], x_scales[t, g, 0] = quantize(part, inputs)
            for n in range(ROWS):
                products = zip(codes[n, columns].tolist(), x_codes[t, g].tolist(), strict=True)
                sums[t, g, n] = sum(a * b for a, b in products)
                scale = scales[g if column_groups > 1 else n // height]
                y[t, n] += sums[t, g, n] * scale / x_scales[t, g, 0]
    return {
        "codes": codes,
        "scales": np.array(scales, np.float32),
        "x_codes": x_codes,
        "x_scales": x_scales.astype(np.float32),
        "sums": sums,
        "y": y.astype(np.float32),
    }


def make(seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((TOKENS, COLUMNS)).astype(np.float32)
    x[3] *= 1e-3
    x[4, 7] = 30  # an outlier, as rotations are made for
    weight = (0.7 * random.standard_normal((ROWS, COLUMNS)) + 0.05).astype(np.float32)
    norm = random.uniform(0.5, 1.5, COLUMNS).astype(np.float32)
    arrays = {"x": x, "weight": weight, "norm": norm}
    for name, recipe in RECIPES.items():
        arrays |= {f"{name}/{key}": value for key, value in run(x, weight, norm, recipe).items()}
    return arrays


def main() -> None:
    for seed in range(100_000):
        try:
            arrays = make(seed)
        except AssertionError:  # a value near a tie
            continue
        np.savez_compressed(Path(__file__).with_name("variants.npz"), **arrays)
        print(f"seed {seed}")
        return
    raise SystemExit("no seed keeps every value away from a tie")


if __name__ == "__main__":
    main()
