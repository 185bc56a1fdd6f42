"""One writer a run's folder: two would drop each other's checkpoints and mix their rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bitnet.errors import InputError
from bitnet.train.parallel import Parallel

LOCK_FILE = ".lock"


@contextmanager
def sole_writer(directory: Path, parallel: Parallel) -> Iterator[None]:
    """Keep all other runs out of a folder; the system ends that with the process, however it dies.

    A file system without locks keeps nobody out.

    Raises:
        InputError: another process writes there.
        OSError: the folder cannot be written.
    """
    lock = FileLock(directory / LOCK_FILE, timeout=0)

    def acquire() -> None:
        try:
            lock.acquire()
        except Timeout:
            raise InputError(
                f"{directory}: another process trains here; wait for its end, or stop it"
            ) from None
        except NotImplementedError:
            pass

    parallel.from_first(acquire)
    try:
        yield
    finally:
        lock.release()
