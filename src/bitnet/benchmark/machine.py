"""The facts a measurement is worth nothing without: the processor, the source's commit, the memory taken."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Memory:
    """Bytes this process has taken; None where the system does not tell.

    Attributes:
        peak: most physical memory at once since `reset_peak`, pages of mapped files included.
        anonymous: physical memory now without pages of files, which the system can drop and read again.
    """

    peak: int | None
    anonymous: int | None


def memory() -> Memory:
    """Linux tells both (VmHWM and RssAnon of /proc/self/status), macOS the peak."""
    fields = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name in ("VmHWM", "RssAnon"):
                fields[name] = int(value.split()[0]) * 1024
    if fields:
        return Memory(fields.get("VmHWM"), fields.get("RssAnon"))
    if sys.platform == "darwin":
        import resource

        return Memory(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, None)
    return Memory(None, None)


def reset_peak() -> None:
    """Let the peak start again from what is held now, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def cpu_name() -> str:
    """The processor's name as its maker writes it, or the architecture."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the checkout this package runs from, None for an installed package.

    `-dirty` follows where tracked files differ from it.
    """
    package = Path(__file__).resolve().parents[1]
    root = package.parents[1]
    if not (root / ".git").exists() or package != root / "src" / "bitnet":
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return None
