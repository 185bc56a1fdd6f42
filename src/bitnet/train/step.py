"""One optimiser step: micro-batches, mean gradient over all processes, clipping, guard, AdamW.

A micro-batch's mean loss enters with weight (its rows / batch rows) · processes, because FSDP2 averages
gradients over the processes: so the sum is the mean over the whole batch, however it is cut. A process with a
row less than its peers repeats one with weight 0, since every process must run every collective.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.distributed.tensor import DTensor

from bitnet.nn import Transformer
from bitnet.train.config import ComputeConfig, DataConfig
from bitnet.train.guard import Guard
from bitnet.train.parallel import Parallel

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class StepResult:
    """Loss in nats a token and gradient norm before clipping, over the whole batch.

    Attributes:
        taken: whether the weights moved; the guard skips bad steps.
        stop: whether any process was asked to stop.
    """

    loss: float
    norm: float
    taken: bool
    stop: bool


class TrainingStep:
    """Runs steps of one model; every process calls it with its rows of the same batch."""

    def __init__(
        self,
        model: Transformer,
        optimizer: torch.optim.AdamW,
        guard: Guard,
        data: DataConfig,
        compute: ComputeConfig,
        clip: float,
        parallel: Parallel,
    ) -> None:
        self._model, self._optimizer, self._guard = model, optimizer, guard
        self._clip, self._parallel = clip, parallel
        self._batch = data.batch_size
        self._most_rows = parallel.most_rows(data.batch_size)
        self._micro = min(data.micro_batch_size or self._most_rows, self._most_rows)
        self._bfloat16 = multiplies_in_bfloat16(compute, parallel.device)

    def __call__(self, inputs: Ids, targets: Ids, stop: bool) -> StepResult:
        """Take or skip one step; the optimiser's rates are set already.

        Args:
            inputs, targets: int64 (rows of this process, sequence_length).
            stop: whether this process was asked to stop; the answer says whether any was.
        """
        parallel, model = self._parallel, self._model
        mean = 0.0
        for rows, weight, last in self._micro_batches(len(inputs)):
            parallel.synchronise_gradients(model, last)
            ids, wanted = (torch.from_numpy(part[rows]).to(parallel.device) for part in (inputs, targets))
            with torch.autocast(parallel.device.type, torch.bfloat16, enabled=self._bfloat16):
                loss = model.loss(ids, wanted)
            (loss * (weight * parallel.world)).backward()  # type: ignore[no-untyped-call]
            mean += loss.item() * weight if weight else 0.0
        mean, stops = parallel.sum(mean, float(stop))
        norm = _whole(torch.nn.utils.clip_grad_norm_(model.parameters(), self._clip)).item()
        taken = self._guard.accepts(mean, norm)
        if taken:
            self._optimizer.step()
        self._optimizer.zero_grad()
        return StepResult(mean, norm, taken, stops > 0)

    def _micro_batches(self, rows: int) -> Iterator[tuple[slice, float, bool]]:
        """Slices of this process's rows, their weights, and whether one is the last."""
        count = math.ceil(self._most_rows / self._micro)
        for number in range(count):
            part = slice(number * self._micro, min(rows, (number + 1) * self._micro))
            size = max(0, part.stop - part.start)
            yield part if size else slice(0, 1), size / self._batch, number == count - 1


def multiplies_in_bfloat16(compute: ComputeConfig, device: torch.device) -> bool:
    """Whether autocast is used: as configured, `auto` asks the hardware."""
    if compute.precision != "auto":
        return compute.precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # without these instructions PyTorch emulates the type, several times slower than float32
    known = torch.cpu.get_capabilities()
    return bool(known.get("avx512_bf16") or known.get("amx_bf16") or known.get("bf16"))


def weights_are_finite(model: Transformer, parallel: Parallel) -> bool:
    """Whether no process holds a NaN or an infinity; all of them must call it."""
    parts = (p.to_local() if isinstance(p, DTensor) else p for p in model.parameters())
    (bad,) = parallel.sum(float(sum(not torch.isfinite(part).all() for part in parts)))
    return bad == 0


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
