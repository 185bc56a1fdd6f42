"""The check before every measurement: a fast wrong answer is worth nothing.

Every kernel of the instruction set in use must agree with the scalar one, and the logits of a ragged batch on
every number of threads must equal, bit for bit, those each sequence gets alone on one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from bitnet import _core
from bitnet.benchmark.cases import fixed_ids
from bitnet.generate.model import Model

# prompts of the batch: one token, one short of and one beyond the widths of kernels and tiles
_LENGTHS = (1, 15, 33)


def check_parity(load: Callable[[int], Model], isa: str, threads: Sequence[int]) -> list[str]:
    """What disagrees, a line each; an empty list is a pass.

    Args:
        load: gives the model on that many threads; it is called once for each and once for 1.
        isa: the instruction set whose kernels are tested.
        threads: those that will be measured.
    """
    wrong = [
        f"kernel {kernel} of {isa} disagrees with scalar: {detail}"
        for kernel, passed, detail in _core.self_test(isa)
        if not passed
    ]
    model = load(1)
    prompts = [
        fixed_ids(model.config.vocab_size, min(length, model.config.max_position_embeddings - 1))
        for length in _LENGTHS
    ]
    expected = [_logits(model, [prompt])[0] for prompt in prompts]
    del model  # one at a time in memory
    for count in sorted(set(threads)):
        found = _logits(load(count), prompts)
        for prompt, alone, together in zip(prompts, expected, found, strict=True):
            if not np.array_equal(alone, together):
                wrong.append(
                    f"{len(prompt)} tokens in a batch on {count} thread(s): logits differ by up to "
                    f"{np.max(np.abs(alone - together)):.3g} from those alone on one"
                )
    return wrong


def _logits(model: Model, prompts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
    """After each prompt and one decode step, (2, vocab_size) a prompt."""
    caches = [model.new_cache(len(prompt) + 1) for prompt in prompts]
    prefill = model.forward(list(zip(caches, prompts, strict=True)))
    decode = model.forward([(cache, prompt[:1]) for cache, prompt in zip(caches, prompts, strict=True)])
    return [np.stack(pair) for pair in zip(prefill, decode, strict=True)]
