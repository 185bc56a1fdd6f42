"""How a run's codes move: the share of zeros in every layer, and of codes that changed.

A code that flips back and forth learns nothing; one that never flips any more is settled. Both shares fall
in the second stage of the schedule (docs/schedules.md).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.tensor import DTensor

from bitnet.nn import BitLinear, Transformer
from bitnet.nn.quantizers import weight_codes
from bitnet.quantize.packing import pack, unpack


class CodeHealth:
    """Compares each measure with the one before, whose codes it keeps packed."""

    def __init__(self, model: Transformer) -> None:
        self._layers = {
            name: module for name, module in model.named_modules() if isinstance(module, BitLinear)
        }
        self._before: dict[str, NDArray[np.uint8]] = {}

    def measure(self) -> dict[str, tuple[float, float]]:
        """Per layer the share of zero codes, and of codes that differ from the last measure's; at first NaN.

        Sharded weights are gathered one at a time: every process must call it.
        """
        result = {}
        for name, module in self._layers.items():
            weight = module.weight.detach()
            whole = weight.full_tensor() if isinstance(weight, DTensor) else weight
            kind = module.recipe.weights
            codes = weight_codes(whole, module.recipe)[0].to(torch.int8).cpu().numpy()
            before = self._before.get(name)
            flips = float("nan") if before is None else float(np.mean(unpack(before, kind) != codes))
            result[name] = float(np.mean(codes == 0)), flips
            self._before[name] = pack(codes, kind)
        return result
