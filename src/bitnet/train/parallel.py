"""One process or many: torchrun's variables, FSDP2 sharding, and the few collectives a run needs.

Layers are sharded by `fully_shard` in float32. The weight is whole after its all-gather, so the absmean of
BitLinear is that of the full matrix and the codes are those of one process. A bfloat16 all-gather would
change 0.04 % of them, which is why there is no such policy; autocast still multiplies in bfloat16.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, fully_shard

from bitnet.errors import BitnetError, ConfigError, ResourceError
from bitnet.nn import Transformer

# PyTorch waits 10 to 30 minutes; the first process may evaluate a large text or learn a tokenizer for longer
PATIENCE = timedelta(hours=4)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Parallel:
    """This process among its peers; `world` is 1 without a launcher."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """Which rows of the global batch are this process's: near-equal runs, in order of rank."""
        return slice(self.rank * batch_size // self.world, (self.rank + 1) * batch_size // self.world)

    def most_rows(self, batch_size: int) -> int:
        """The longest of all processes' shares."""
        return -(-batch_size // self.world)

    def shard(self, model: Transformer) -> None:
        """Spread the parameters of every layer, and of the rest, over the processes."""
        if self.world > 1:
            for layer in model.model.layers:
                fully_shard(layer)
            fully_shard(model)

    def synchronise_gradients(self, model: Transformer, wanted: bool) -> None:
        """Whether the next backward pass reduces gradients; only the last micro-batch's needs to."""
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(wanted)

    def sum(self, *values: float) -> list[float]:
        """The values added up over all processes, on each of them; in float64."""
        if self.world == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        result: list[float] = tensor.tolist()
        return result

    def from_first(self, work: Callable[[], _T]) -> _T:
        """What `work` returns on the first process, on all of them.

        A fault of input or disk is raised on all of them too: else the others would wait for a process that
        has given up. The result must pickle.
        """
        if self.world == 1:
            return work()
        answer: list[Any] = [None, None]
        if self.first:
            try:
                answer[0] = work()
            except (BitnetError, OSError) as error:
                answer[1] = error
        dist.broadcast_object_list(answer, src=0)
        if answer[1] is not None:
            raise answer[1]
        result: _T = answer[0]
        return result

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            dist.barrier()


def check_batch(parallel: Parallel, batch_size: int) -> None:
    """Raises ConfigError: a process would have nothing to do."""
    if batch_size < parallel.world:
        raise ConfigError(
            f"data.batch_size is {batch_size} for {parallel.world} processes; give each at least one sequence"
        )


@contextmanager
def processes() -> Iterator[Parallel]:
    """Join the processes that torchrun started, for the length of the block.

    A process group that is there already stays: Ray makes one, sets torchrun's variables, and ends it.

    Raises:
        ResourceError: a peer was lost or cannot be reached, or memory does not suffice.
        ConfigError: torchrun's variables are not whole, or ask for a GPU that is not there.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    joined = dist.is_initialized()
    try:
        yield Parallel(device=_device(0)) if world == 1 else _join(world)
    except (dist.DistError, RuntimeError, MemoryError) as error:
        if is_lost_peer(error):
            raise ResourceError(_lost(error)) from None
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error):
            raise ResourceError(
                "not enough memory for this model and batch; set a smaller data.micro_batch_size or model, "
                "compute.activation_checkpointing=true, or use more processes"
            ) from None
        raise
    finally:
        if dist.is_initialized() and not joined:
            dist.destroy_process_group()


def _join(world: int) -> Parallel:
    device = _device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except ValueError as error:  # a variable is missing
        raise ConfigError(f"WORLD_SIZE is {world}, but {error}; start the processes by torchrun") from None
    return Parallel(dist.get_rank(), world, device)


# what gloo says when the other end of a connection is gone; it raises plain RuntimeError
_LOST_PEER = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "timed out",
    "Timed out",
)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an exception of a collective means that another process is gone."""
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST_PEER)


def _lost(error: Exception) -> str:
    reason = str(error).strip().splitlines()[-1][:200]
    return (
        f"another process of this run is gone ({reason}); checkpoints are whole: start all of them again "
        "with --resume"
    )


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {local_rank} of this machine has no GPU, there are {torch.cuda.device_count()}; "
            "lower --nproc-per-node"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)
