"""`bitnet info`: what a checkpoint holds, counted from its tensors and not from its name.

With `--energy`: what its shape costs by the papers' estimate (`bitnet.energy`), for which no tensor is read.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.table import Table

    from bitnet.config import ModelConfig
    from bitnet.energy import Joules
    from bitnet.formats.checkpoint import Checkpoint, QuantizedLinear

_SAMPLES = 8  # values shown of each tensor
_BLOCK = 1 << 20  # elements counted in one go, so that a mapped tensor is never held as a whole
_LEAST_WIDTH, _PIPE_WIDTH = 96, 160  # columns; a narrower terminal wraps, and a pipe has no width of its own


def info(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="PATH_OR_ID", help="A folder, a GGUF file or a Hub id.", show_default="the embedded model"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    energy: Annotated[
        bool,
        typer.Option(
            "--energy", help="Estimate the energy and memory of this shape instead, as the papers do."
        ),
    ] = False,
    preset: Annotated[
        str | None, typer.Option(help="With --energy: a named shape instead of a model.", show_default=False)
    ] = None,
) -> None:
    """Show a model's parameters, bits a weight, memory, configuration and tensors; or its energy."""
    from bitnet.formats.checkpoint import read_checkpoint
    from bitnet.load import embedded_model

    if preset is not None:
        summary = _preset_energy(preset, model, energy)
    else:
        checkpoint = read_checkpoint(embedded_model() if model is None else model)
        summary = estimate(checkpoint.where, checkpoint.config) if energy else summarize(checkpoint)
    if as_json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    elif energy:
        _print_energy(summary)
    else:
        _print(summary)


def _preset_energy(name: str, model: str | None, energy: bool) -> dict[str, Any]:
    from bitnet.config import preset
    from bitnet.errors import InputError

    if model is not None:
        raise InputError(f"--preset {name} and the model {model!r} exclude each other; name one of them")
    if not energy:
        raise InputError(f"--preset {name} is a shape without tensors; add --energy")
    return estimate(f"preset {name}", preset(name))


def estimate(where: str, config: ModelConfig) -> dict[str, Any]:
    """Everything `bitnet info --energy --json` prints; its joules are for a prompt of `tokens` tokens."""
    from bitnet import energy

    head = energy.head_operations(config, energy.PAPER_TOKENS)
    parts = {weights: energy.operations(config, weights=weights) for weights in ("fp16", "bitnet")}
    context = config.max_position_embeddings
    return {
        "model": where,
        "tokens": energy.PAPER_TOKENS,
        "operations": {weights: [asdict(part) for part in (*parts[weights], head)] for weights in parts},
        "joules": {
            node: {weights: _joules(energy.joules(parts[weights], node)) for weights in parts}
            | {"head": _joules(energy.joules([head], node))}
            for node in energy.PICOJOULES
        },
        "weight_bytes": {
            f"{bits:.3g}": asdict(energy.weight_bytes(config, bits)) for bits in (16, 2, energy.TERNARY_BITS)
        },
        "context": context,
        "kv_cache_bytes": {str(bits): energy.kv_cache_bytes(config, context, bits) for bits in (16, 8, 4, 3)},
    }


def _joules(energy: Joules) -> dict[str, float]:
    return {"add": energy.add, "mul": energy.mul, "total": energy.total}


def summarize(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything `bitnet info --json` prints; `ternary` counts the projections, binary ones too."""
    from bitnet.quantize.kv_cache import bytes_per_head

    config = checkpoint.config
    names = sorted((name for name in checkpoint.tensors if not name.endswith("_scale")), key=_reading_order)
    tensors = [_describe(checkpoint, name) for name in names]
    parameters = sum(row["parameters"] for row in tensors)
    ternary = sum(row["parameters"] for row in tensors if row["ternary"])
    stored = {name: tensor.nbytes for name, tensor in checkpoint.tensors.items()}
    ternary_bytes = sum(stored[row["name"]] for row in tensors if row["ternary"])
    kv_heads = config.num_hidden_layers * config.num_key_value_heads
    kv_bytes = kv_heads * bytes_per_head(config.head_dim, config.quantization.kv_bits)
    return {
        "model": checkpoint.where,
        "parameters": parameters,
        "ternary_parameters": ternary,
        "bits_per_weight": {
            "ternary": 8 * ternary_bytes / ternary,
            "overall": 8 * sum(stored.values()) / parameters,
        },
        "file_bytes": _file_bytes(checkpoint),
        "memory_bytes": {
            "weights": sum(stored.values()),
            "kv_cache_per_token": kv_bytes,
            "kv_cache_full_context": kv_bytes * config.max_position_embeddings,
        },
        "stop_tokens": sorted(checkpoint.stop_tokens),
        "config": config.to_dict(),
        "tensors": tensors,
    }


def _reading_order(name: str) -> list[str | int]:
    """Sorts layer 10 behind layer 9."""
    return [int(part) if part.isdigit() else part for part in name.split(".")]


def _describe(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """One row: shape and parameters as the model computes with them, whatever the packing."""
    tensor = checkpoint.tensor(name)
    row: dict[str, Any] = {"name": name, "dtype": tensor.dtype, "ternary": False, "shape": list(tensor.shape)}
    owner = name.removesuffix(".weight")
    from bitnet.formats.tensor import Tensor

    if owner.endswith("_proj") and name.endswith(".weight"):
        from bitnet.quantize.packing import unpack

        linear = checkpoint.linear(owner)
        # The first row's codes stand in the lowest bits of the first packed row.
        sample = unpack(linear.packed[:1, :_SAMPLES], linear.recipe.weights)[0].tolist()
        rows = checkpoint.config.quantization.codes_a_byte * linear.packed.shape[0]
        row |= {"ternary": True, "shape": [rows, linear.packed.shape[1]]}
        row |= {"zero_fraction": _zero_codes(linear), "scale": float(linear.scales.mean()), "sample": sample}
    else:
        data = tensor.data  # a block-quantised one is decoded anew each time
        head = Tensor(tensor.dtype, (_SAMPLES,), data.reshape(-1)[:_SAMPLES]).float32()
        # The shortest decimals that give back the float32, not the longer ones of its float64.
        sample = [float(f"{value:.6g}") for value in head]
        row |= {"zero_fraction": _zero_fraction(data), "scale": None, "sample": sample}
    row["parameters"] = math.prod(row["shape"])
    return row


def _zero_codes(linear: QuantizedLinear) -> float:
    from bitnet.quantize.packing import count_codes

    if linear.recipe.weights == "binary":
        return 0.0
    counts = count_codes(linear.packed)
    return counts[1] / sum(counts)


def _zero_fraction(data: NDArray[np.generic]) -> float:
    import numpy as np

    # BF16 is held as its bits, where -0.0 is the sign alone.
    flat = data.reshape(-1)
    mask = np.uint16(0x7FFF) if flat.dtype == np.uint16 else None
    nonzero = 0
    for start in range(0, flat.size, _BLOCK):
        block = flat[start : start + _BLOCK]
        nonzero += int(np.count_nonzero(block if mask is None else np.bitwise_and(block, mask)))
    return 1.0 - nonzero / flat.size


def _file_bytes(checkpoint: Checkpoint) -> int | None:
    if checkpoint.directory is None:
        file = Path(checkpoint.where)
        return file.stat().st_size if file.is_file() else None
    return sum(path.stat().st_size for path in checkpoint.directory.glob("model*.safetensors"))


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    console.width = max(_LEAST_WIDTH, console.width if console.is_terminal else _PIPE_WIDTH)
    parameters, ternary = summary["parameters"], summary["ternary_parameters"]
    bits, memory, config = summary["bits_per_weight"], summary["memory_bytes"], summary["config"]
    kind = config["quantization_config"].get("weights", "ternary")
    facts = Table.grid(padding=(0, 3))
    facts.add_row("model", summary["model"])
    facts.add_row("parameters", f"{parameters:,} ({ternary:,} {kind}, {parameters - ternary:,} other)")
    facts.add_row("bits a weight", f"{bits['ternary']:.2f} {kind}, {bits['overall']:.2f} overall")
    if summary["file_bytes"] is not None:
        facts.add_row("file size", f"{summary['file_bytes']:,} bytes")
    facts.add_row(
        "memory",
        f"{_size(memory['weights'])} weights, {_size(memory['kv_cache_per_token'])} a token of context "
        f"({_size(memory['kv_cache_full_context'])} for {config['max_position_embeddings']:,})",
    )
    facts.add_row("stop tokens", ", ".join(map(str, summary["stop_tokens"])) or "none")
    console.print(facts)
    settings = Table("config", "", box=None, padding=(0, 3, 0, 0))
    for key, value in config.items():
        settings.add_row(key, json.dumps(value))
    console.print("", settings, "")
    console.print(_tensor_table(summary["tensors"]))


def _print_energy(summary: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    console.width = max(_LEAST_WIDTH, console.width if console.is_terminal else _PIPE_WIDTH)
    console.print(f"{summary['model']}: the papers' estimate, of the arithmetic alone and not of moving data")
    console.print("", _joules_table(summary), "", _operations_table(summary), "", _memory_table(summary))


def _joules_table(summary: dict[str, Any]) -> Table:
    tokens = summary["tokens"]
    table = _numbers("energy", f"ADD, {tokens} tokens", "MUL", "both", "a token", "FP16 / BitNet")
    for node, rows in summary["joules"].items():
        for key, label in (
            ("fp16", "FP16 twin"),
            ("bitnet", "BitNet"),
            ("head", "head, FP16 (not in the papers)"),
        ):
            row = rows[key]
            saving = f"{rows['fp16']['total'] / row['total']:.1f}" if key == "bitnet" else ""
            values = (row["add"], row["mul"], row["total"], row["total"] / tokens)
            table.add_row(f"{node.replace('nm', ' nm')}  {label}", *map(_energy, values), saving)
    return table


def _operations_table(summary: dict[str, Any]) -> Table:
    tokens = summary["tokens"]
    table = _numbers("operations", "ADD, a token", "MUL")
    for weights, label in (("fp16", "FP16 twin"), ("bitnet", "BitNet")):
        for part in summary["operations"][weights]:
            counts = (f"{part[key] / tokens:,.0f}" for key in ("adds", "muls"))
            table.add_row(f"{label}  {part['part']} ({part['kind']})", *counts)
    return table


def _memory_table(summary: dict[str, Any]) -> Table:
    table = _numbers("memory", "projections", "embedding", "head", "total")
    for bits, row in summary["weight_bytes"].items():
        sizes = (row["projections"], row["embedding"], row["head"], sum(row.values()))
        table.add_row(f"weights at {bits} bits", *map(_size, sizes))
    for bits, size in summary["kv_cache_bytes"].items():
        table.add_row(
            f"keys and values at {bits} bits, {summary['context']:,} tokens", "", "", "", _size(size)
        )
    return table


def _numbers(first: str, *headings: str) -> Table:
    from rich.table import Table

    table = Table(first, box=None, padding=(0, 3, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _tensor_table(rows: list[dict[str, Any]]) -> Table:
    """Only the sample values give way on a narrow terminal; numbers and names stay whole."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    cells = [
        (
            row["name"],
            "×".join(map(str, row["shape"])),
            f"{row['parameters']:,}",
            f"{row['zero_fraction']:.1%}",
            "" if row["scale"] is None else f"{row['scale']:.5g}",
            " ".join(
                (" 0", "+1", "-1")[value] if row["ternary"] else f"{value:.3g}" for value in row["sample"]
            ),
        )
        for row in rows
    ]
    headings = ("tensor", "shape", "parameters", "zeros", "scale")
    for heading, column in zip(headings, zip(*cells, strict=True), strict=False):
        width = max(map(len, (heading, *column)))
        table.add_column(
            heading, no_wrap=True, min_width=width, justify="left" if heading == "tensor" else "right"
        )
    table.add_column("values", no_wrap=True, overflow="ellipsis")
    for line in cells:
        table.add_row(*line)
    return table


def _size(count: float) -> str:
    """Bytes in decimal units, as disks and downloads are sold."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def _energy(joules: float) -> str:
    for unit in ("J", "mJ", "µJ"):
        if joules >= 1:
            return f"{joules:.4g} {unit}"
        joules *= 1000
    return f"{joules:.4g} nJ"
