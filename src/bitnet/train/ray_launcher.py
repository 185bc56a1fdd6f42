"""Training on a Ray cluster: Ray starts the processes and their process group, and `processes` joins it.

Every worker runs the same function as a process of torchrun does, in the folder the command was given in. So
relative paths mean the same everywhere, and several machines need a file system they share.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from bitnet.errors import BitnetError, ResourceError
from bitnet.train.parallel import PATIENCE


def launch(work: Callable[[], None], workers: int, out: Path, threads: int | None = None) -> None:
    """Run `work` in so many workers at once, and wait for all of them.

    Joins the cluster that RAY_ADDRESS names or that runs on this machine, else starts one for the length of
    the call. A worker takes a GPU where the cluster has any, else `threads` CPUs (None: one).

    Args:
        work: picklable; calls `processes` to learn its rank.
        out: a folder that all machines see; Ray's own files are there until the end.
    Raises:
        ResourceError: Ray is missing, has no room for the workers, or lost one.
        BitnetError: what `work` raised in a worker.
    """
    if find_spec("ray") is None:
        raise ResourceError("--launcher ray needs ray; pip install 'bitnet-ternary[ray]' brings it")
    from ray.train import RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = Path.cwd()

    def run() -> None:
        os.chdir(folder)  # Ray starts a worker in a folder of its own
        work()

    with _cluster(workers, threads or 1) as use_gpu, _storage(out) as storage:
        trainer = TorchTrainer(
            run,
            torch_config=TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=use_gpu,
                resources_per_worker={"GPU": 1} if use_gpu else {"CPU": threads or 1},
            ),
            run_config=RunConfig(storage_path=str(storage)),
        )
        try:
            trainer.fit()
        except TrainingFailedError as error:
            raise _reason(error) from None
        except SystemExit:  # Ray's way to answer Ctrl-C, with code 0
            raise KeyboardInterrupt from None


@contextmanager
def _cluster(workers: int, cpus: int) -> Iterator[bool]:
    """A cluster to work on; yields whether it has GPUs."""
    import ray

    started = not ray.is_initialized()
    if started:
        try:
            ray.init()
        except (ConnectionError, RuntimeError) as error:
            raise ResourceError(f"the Ray cluster cannot be reached: {error}") from None
    try:
        resources = ray.cluster_resources()
        use_gpu = resources.get("GPU", 0) > 0
        kind, wanted = ("GPU", workers) if use_gpu else ("CPU", workers * cpus)
        there = resources.get(kind, 0)
        # a cluster may grow when it is asked to; Ray would wait for a single machine to do so for ever
        if len(ray.nodes()) == 1 and wanted > there:
            raise ResourceError(
                f"{workers} workers need {wanted} {kind}s, Ray has {there:g}; lower --workers or --threads, "
                "or join a larger cluster by RAY_ADDRESS"
            )
        yield use_gpu
    finally:
        if started:
            ray.shutdown()


@contextmanager
def _storage(out: Path) -> Iterator[Path]:
    """A folder for Ray's own files; nothing of it stays, nor does `out` if the run wrote nothing."""
    folder = out.absolute() / ".ray"
    made = not out.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if made and not any(out.iterdir()):
            out.rmdir()


def _reason(error: Exception) -> Exception:
    """What a worker raised, if it is no defect; else that a worker is lost; else `error` itself."""
    failures: list[Exception] = list(getattr(error, "worker_failures", {}).values()) or [error]
    for failure in failures:
        if isinstance(failure, (BitnetError, OSError)):
            return failure
    if not all(type(failure).__module__.startswith("ray.") for failure in failures):
        return error
    text = str(failures[0]).strip().partition("\n")[0][:200]
    return ResourceError(
        f"Ray lost a worker of this run ({text}); checkpoints are whole: start again with --resume"
    )
