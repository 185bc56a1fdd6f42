"""What ternary training costs: one optimiser step with BitLinear against the same model on `nn.Linear`.

    python benchmarks/train_step.py --preset stories --batch 8 --seq 256 [--variant a4.8]

Forward, backward, clipping and AdamW, the two models in turn (A B A B) in one process; medians, and the
quartiles of the ratios of neighbours. CPU time is the whole process's: on a busy machine compare that, with
one thread (more would count their waiting). Memory is what PyTorch's allocator holds at the peak of a step
above its start, from the profiler.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from bitnet.config import preset as find_preset
from bitnet.nn import BitLinear, Transformer
from bitnet.quant_config import variant as find_variant
from bitnet.train.config import OptimizerConfig
from bitnet.train.optimizer import build_optimizer

Step = Callable[[], None]


def main(
    preset: Annotated[str, typer.Option(help="The model's shape.")] = "stories",
    variant: Annotated[str | None, typer.Option(help="The quantisers; else the preset's.")] = None,
    batch: Annotated[int, typer.Option(help="Sequences a step.")] = 8,
    seq: Annotated[int, typer.Option(help="Tokens a sequence.")] = 256,
    repetitions: Annotated[int, typer.Option("-r", help="Timed steps of each model.")] = 15,
    threads: Annotated[int | None, typer.Option("-t", help="CPU threads.")] = None,
    precision: Annotated[Literal["float32", "bfloat16"], typer.Option()] = "float32",
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile every layer.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Measure both models and print the ratio."""
    if threads is not None:
        torch.set_num_threads(threads)
    steps = {
        "nn.Linear": make_step(preset, variant, batch, seq, precision, compiled, quantised=False),
        "BitLinear": make_step(preset, variant, batch, seq, precision, compiled, quantised=True),
    }
    for step in steps.values():
        step()
        step()
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repetitions):
        for name, step in steps.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            step()
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
    memory = {name: peak_bytes(step) for name, step in steps.items()}
    result = {
        "preset": preset,
        "variant": variant,
        "batch": batch,
        "sequence_length": seq,
        "precision": precision,
        "compiled": compiled,
        "threads": torch.get_num_threads(),
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "ratio_quartiles": ratio_quartiles(seconds),
        "cpu_ratio_quartiles": ratio_quartiles(cpu_seconds),
        "peak_bytes": memory,
    }
    if as_json:
        print(json.dumps(result))
        return
    table = Table("model", "ms a step", "tokens/s", "MB at the peak")
    for name, times in seconds.items():
        median = statistics.median(times)
        table.add_row(
            name, f"{median * 1e3:.0f}", f"{batch * seq / median:,.0f}", f"{memory[name] / 1e6:.0f}"
        )
    Console().print(table)
    for name, key in (("ratio", "ratio_quartiles"), ("ratio of CPU time", "cpu_ratio_quartiles")):
        low, ratio, high = result[key]
        print(f"{name} {ratio:.3f} (middle half {low:.3f} – {high:.3f})")


def ratio_quartiles(seconds: dict[str, list[float]]) -> list[float]:
    """Of BitLinear's time over that of the step of nn.Linear before it."""
    pairs = zip(seconds["BitLinear"], seconds["nn.Linear"], strict=True)
    return statistics.quantiles(bit / plain for bit, plain in pairs)


def make_step(
    preset: str, variant: str | None, batch: int, seq: int, precision: str, compiled: bool, quantised: bool
) -> Step:
    """One training step of a fresh model on fixed random ids."""
    torch.manual_seed(0)
    config = find_preset(preset)
    if variant is not None:
        config = replace(config, quantization=find_variant(variant))
    model = Transformer(config.with_quantization("online"))
    if not quantised:
        use_plain_linears(model)
    if compiled:
        for layer in model.model.layers:
            layer.compile()
    optimizer = build_optimizer(model, OptimizerConfig())
    ids = torch.randint(0, model.config.vocab_size, (batch, seq + 1))

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss = model.loss(ids[:, :-1], ids[:, 1:])
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def use_plain_linears(model: nn.Module) -> None:
    """Put an nn.Linear with the same weights in the place of every BitLinear."""
    for name, child in model.named_children():
        if isinstance(child, BitLinear):
            plain = nn.Linear(child.in_features, child.out_features, bias=child.bias is not None)
            plain.load_state_dict(child.state_dict(), strict=False)  # a norm inside has no place
            setattr(model, name, plain)
        else:
            use_plain_linears(child)


def peak_bytes(step: Step) -> int:
    """The highest sum of allocations within one step, above its start."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    held = peak = 0
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


if __name__ == "__main__":
    typer.run(main)
