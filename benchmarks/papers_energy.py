"""The published figures of energy and memory beside ours: the tables of docs/energy.md.

    python benchmarks/papers_energy.py

Ours are formulas of `bitnet.energy` on the published shapes; nothing is measured. A published cell is kept as
it is printed, and ours counts as the same where it rounds to the same digits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bitnet.config import ModelConfig, preset
from bitnet.energy import PICOJOULES, TERNARY_BITS, Node, Weights, joules, operations, weight_bytes


@dataclass(frozen=True)
class Cell:
    """One published number as printed, and ours unrounded."""

    published: str
    ours: float

    @property
    def equal(self) -> bool:
        """Whether ours rounds to the printed digits."""
        return f"{self.ours:.{self._decimals}f}" == self.published

    @property
    def _decimals(self) -> int:
        return len(self.published.partition(".")[2])

    def __str__(self) -> str:
        digits = self._decimals + (0 if self.equal else 2)
        return f"{self.published} / {self.ours:.{digits}f}" + ("" if self.equal else " ≠")


def transformer(
    hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int = 0, head_dim: int = 0
) -> ModelConfig:
    """A decoder's shape; as many key-value heads as heads unless told. The vocabulary counts nowhere here."""
    return ModelConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads or heads,
        head_dim=head_dim,
        max_position_embeddings=2048,
    )


# hidden size, layers, heads of arXiv 2310.11453's models; feed-forward layers four times as wide, no gate
BITNET = {
    size: transformer(hidden, 4 * hidden, layers, heads)
    for size, hidden, layers, heads in (
        ("125M", 768, 12, 12),
        ("350M", 1024, 24, 16),
        ("760M", 1536, 24, 16),
        ("1.3B", 2048, 24, 32),
        ("2.7B", 2560, 32, 32),
        ("6.7B", 4096, 32, 32),
        ("13B", 5120, 40, 40),
        ("30B", 7168, 48, 56),
    )
}
NODES: tuple[Node, ...] = ("7nm", "45nm")
# arXiv 2310.11453, table 1: J for 512 tokens, MUL and ADD at 7 nm, MUL and ADD at 45 nm
TABLE_1: dict[tuple[str, Weights], tuple[str, str, str, str]] = {
    ("6.7B", "fp32"): ("4.41", "1.28", "12.46", "3.03"),
    ("6.7B", "fp16"): ("1.14", "0.54", "3.70", "1.35"),
    ("6.7B", "bitnet"): ("0.02", "0.04", "0.08", "0.13"),
    ("13B", "fp32"): ("8.58", "2.49", "24.23", "5.89"),
    ("13B", "fp16"): ("2.23", "1.05", "7.20", "2.62"),
    ("13B", "bitnet"): ("0.04", "0.06", "0.12", "0.24"),
    ("30B", "fp32"): ("20.09", "5.83", "56.73", "13.80"),
    ("30B", "fp16"): ("5.21", "2.45", "16.87", "6.13"),
    ("30B", "bitnet"): ("0.06", "0.14", "0.20", "0.53"),
}
# its figure 1: FP16 energy by BitNet's, 7 nm; the drawing labels six of the eight sizes, here in their order
FIGURE_1 = {"125M": "8.8", "350M": "11.0", "760M": "15.0", "1.3B": "18.6", "2.7B": "21.7", "30B": "38.8"}
# arXiv 2402.17764, table 1: GB of memory measured on a GPU, LLaMA in FP16 and b1.58 with 2-bit kernels
GPU_MEMORY = {"700m": (2.08, 0.80), "1.3b": (3.34, 1.14), "3b": (7.89, 2.22), "3.9b": (None, 2.38)}
# arXiv 2504.12285, table 1: estimated J (512 tokens, 7 nm) and GB without embeddings; shapes as published
TABLE_2B4T: dict[str, tuple[ModelConfig, Weights, str, str]] = {
    "LLaMA 3.2 1B": (transformer(2048, 8192, 16, 32, 8), "fp16", "0.258", "2"),
    "Gemma-3 1B": (transformer(1152, 6912, 26, 4, 1, 256), "fp16", "0.186", "1.4"),
    "Qwen2.5 1.5B": (transformer(1536, 8960, 28, 12, 2), "fp16", "0.347", "2.6"),
    "SmolLM2 1.7B": (transformer(2048, 8192, 24, 32), "fp16", "0.425", "3.2"),
    "MiniCPM 2B": (transformer(2304, 5760, 40, 36), "fp16", "0.649", "4.8"),
    "BitNet b1.58 2B4T": (preset("2b4t"), "bitnet", "0.028", "0.4"),
}


def energy_cells(size: str, weights: Weights) -> tuple[Cell, ...]:
    """A row of table 1 of arXiv 2310.11453."""
    parts = operations(BITNET[size], weights=weights, gated=False)
    energies = [joules(parts, node) for node in NODES]
    values = [value for energy in energies for value in (energy.mul, energy.add)]
    return tuple(Cell(*pair) for pair in zip(TABLE_1[size, weights], values, strict=True))


def ratio(config: ModelConfig, gated: bool) -> float:
    """FP16 energy by BitNet's for 512 tokens at 7 nm."""
    fp16, bitnet = (joules(operations(config, weights=w, gated=gated), "7nm") for w in ("fp16", "bitnet"))
    return fp16.total / bitnet.total


def product_ratio() -> Cell:
    """What arXiv 2402.17764 gives for a matrix product: an FP16 MUL and ADD by an INT8 ADD."""
    fp16, int8 = PICOJOULES["7nm"]["fp16"], PICOJOULES["7nm"]["int8"]
    return Cell("71.4", sum(fp16) / int8[0])


def ratio_cells() -> dict[str, Cell]:
    """The labels of figure 1 of arXiv 2310.11453."""
    return {size: Cell(label, ratio(BITNET[size], gated=False)) for size, label in FIGURE_1.items()}


def cells_2b4t(name: str) -> tuple[Cell, Cell]:
    """Joules and gigabytes of a row of arXiv 2504.12285's table 1; ternary weights at log2(3) bits."""
    config, weights, energy, gigabytes = TABLE_2B4T[name]
    size = weight_bytes(config, TERNARY_BITS if weights == "bitnet" else 16).projections / 1e9
    return Cell(energy, joules(operations(config, weights=weights), "7nm").total), Cell(gigabytes, size)


def tables() -> dict[str, str]:
    """Every table of docs/energy.md, in Markdown, by what it compares."""
    names = {"fp32": "Transformer FP32", "fp16": "Transformer FP16", "bitnet": "BitNet"}
    return {
        "energy": _markdown(
            ("size", "model", "7 nm MUL", "7 nm ADD", "45 nm MUL", "45 nm ADD"),
            ((size, names[weights], *energy_cells(size, weights)) for size, weights in TABLE_1),
        ),
        "ratios": _markdown(tuple(FIGURE_1), [ratio_cells().values()]),
        "2b4t": _markdown(
            ("model", "J for 512 tokens", "GB without embeddings"),
            ((name, *cells_2b4t(name)) for name in TABLE_2B4T),
        ),
        "memory": _markdown(
            ("size", "LLaMA measured", "weights", "rest", "b1.58 measured", "weights", "rest"),
            map(_memory_row, GPU_MEMORY),
        ),
    }


def _memory_row(size: str) -> tuple[str, ...]:
    config = preset(f"b1.58-{size}")
    row = [size.upper()]
    for measured, bits in zip(GPU_MEMORY[size], (16, 2), strict=True):
        weights = weight_bytes(config, bits).total / 1e9
        row += [f"{measured:.2f}", f"{weights:.2f}", f"{measured - weights:.2f}"] if measured else ["–"] * 3
    return tuple(row)


def _markdown(headings: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


if __name__ == "__main__":
    print("published / ours\n")
    print("\n\n".join(tables().values()))
