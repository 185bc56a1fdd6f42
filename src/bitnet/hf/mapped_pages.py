"""Give mapped pages back to the system after their last use.

transformers maps a checkpoint and keeps the mapping as long as one tensor of it lives, the embedding for
example. Pages of weights that were read once then count as the process's memory. Linux drops them on request;
reading them again is reading the file.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

from torch import Tensor

_BATCH = 64 << 20  # bytes collected before pages are given back: looking through the mappings takes a while
_MADV_DONTNEED = 4  # <asm-generic/mman-common.h>


class PageReleaser:
    """Takes tensors that nobody is going to read soon. `finish` at the end."""

    def __init__(self) -> None:
        self._tensors: list[Tensor] = []
        self._held = 0

    def add(self, tensor: Tensor) -> None:
        """Release the tensor's pages now or at a later call; what it holds stays readable."""
        self._tensors.append(tensor)
        self._held += tensor.nbytes
        if self._held >= _BATCH:
            self._release()

    def finish(self) -> None:
        """Release what is left, and again what reading the neighbours brought back."""
        self._release()
        self._tensors.clear()

    def _release(self) -> None:
        self._held = 0
        if sys.platform != "linux" or not self._tensors:
            return
        mappings = _unmodified_file_mappings()
        library = ctypes.CDLL(None)
        for tensor in self._tensors:
            start = tensor.data_ptr()
            end = start + tensor.nbytes
            if not any(first <= start and end <= last for first, last in mappings):
                continue
            # whole pages only: the first and the last one may belong to neighbours, too
            start = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            end = end // mmap.PAGESIZE * mmap.PAGESIZE
            if start < end:  # a refusal costs memory only
                library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def _unmodified_file_mappings() -> list[tuple[int, int]]:
    """(first, last + 1) address of private mappings of files without a page that was written to.

    Dropping a page that was written to would lose what was written.
    """
    found = []
    current: tuple[int, int] | None = None
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:  # a system that does not show it keeps its pages
        return []
    for line in lines:
        parts = line.split()
        if not parts[0].endswith(":"):  # address range, permissions, offset, device, inode, path
            first, last = (int(part, 16) for part in parts[0].split("-"))
            is_file = parts[1].endswith("p") and parts[4] != "0"
            current = (first, last) if is_file else None
        elif parts[0] == "Anonymous:" and current is not None and parts[1] == "0":
            found.append(current)
    return found
