"""`bitnet doctor`: what this machine offers, and whether every kernel computes what the scalar one does."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from bitnet.errors import InputError, ResourceError

_PACKAGES = ("bitnet-ternary", "numpy", "safetensors", "tokenizers", "huggingface_hub", "jinja2", "torch")


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show the CPU, memory bandwidth and versions, and test every kernel against the scalar one.

    Exits with 1 when a kernel computes something wrong.
    """
    report = examine()
    if as_json:
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        _print(report)
    if not report["healthy"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Everything `bitnet doctor --json` prints.

    Raises:
        ResourceError: the C++ extension is not installed.
        InputError: BITNET_ISA names no instruction set that works here.
    """
    try:
        from bitnet import _core
    except ImportError as error:
        raise ResourceError(f"the C++ engine does not load ({error}); build it with ./setup.sh") from None
    from bitnet.benchmark.machine import cpu_name
    from bitnet.benchmark.roofline import read_bandwidth

    supported = _core.supported_isas()
    try:
        chosen = _core.chosen_isa()
    except ValueError as error:
        raise InputError(str(error)) from None
    cores = _core.physical_cores()
    tests = [
        {"isa": isa, "kernel": kernel, "passed": passed, "detail": detail}
        for isa in supported
        for kernel, passed, detail in _core.self_test(isa)
    ]
    return {
        "healthy": all(test["passed"] for test in tests),
        "cpu": cpu_name(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "physical_cores": cores,
        "threads_environment": os.environ.get("BITNET_THREADS"),
        "isa": {"chosen": chosen, "supported": supported, "compiled": _core.isa_names()},
        "read_bandwidth_gb_per_s": {
            str(threads): round(read_bandwidth(threads), 1) for threads in sorted({1, cores})
        },
        "self_tests": tests,
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in _PACKAGES},
        "cache": _cache(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cache() -> dict[str, Any]:
    """Where downloads go and how much room is left there."""
    from huggingface_hub.constants import HF_HUB_CACHE

    existing = Path(HF_HUB_CACHE)
    while not existing.exists():
        existing = existing.parent
    return {
        "path": HF_HUB_CACHE,
        "free_bytes": shutil.disk_usage(existing).free,
        "writable": os.access(existing, os.W_OK),
    }


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    facts = Table.grid(padding=(0, 3))
    facts.add_row("CPU", report["cpu"])
    facts.add_row("system", report["system"])
    threads = report["threads_environment"]
    facts.add_row(
        "cores", f"{report['physical_cores']}" + (f" (BITNET_THREADS={threads})" if threads else "")
    )
    isa = report["isa"]
    others = [name if name in isa["supported"] else f"{name} (not on this CPU)" for name in isa["compiled"]]
    facts.add_row("instructions", f"{isa['chosen']}, of {', '.join(others)}")
    speeds = report["read_bandwidth_gb_per_s"].items()
    facts.add_row("memory reads", ", ".join(f"{speed} GB/s with {n} thread(s)" for n, speed in speeds))
    versions = [f"{name} {number or 'not installed'}" for name, number in report["packages"].items()]
    facts.add_row("versions", f"Python {report['python']}, {', '.join(versions)}")
    cache = report["cache"]
    state = f"{cache['free_bytes'] / 1e9:.1f} GB free" + ("" if cache["writable"] else ", not writable")
    facts.add_row("downloads", f"{cache['path']} ({state})")
    console.print(facts, "")
    for name in isa["supported"]:
        tests = [test for test in report["self_tests"] if test["isa"] == name]
        passed = sum(test["passed"] for test in tests)
        console.print(f"self-test {name}: {passed} of {len(tests)} kernels agree with scalar")
        for test in tests:
            if not test["passed"]:
                console.print(f"  wrong: {test['kernel']}: {test['detail']}", style="red")
    if not report["healthy"]:
        console.print("Do not trust this build's output on this machine.", style="red")
