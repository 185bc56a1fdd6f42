"""From a prompt to its continuation: prefill and decode, sampling, stop conditions, multi-turn chat."""

import sys
from types import ModuleType

from bitnet.generate.chat import Chat
from bitnet.generate.loop import Generation, StopReason, Stream, generate, stream
from bitnet.generate.model import Cache, Model
from bitnet.generate.sampling import Sampler, SamplingParams

__all__ = [
    "Cache",
    "Chat",
    "Generation",
    "Model",
    "Sampler",
    "SamplingParams",
    "StopReason",
    "Stream",
    "generate",
    "stream",
]


class _CallablePackage(ModuleType):
    """Makes `bitnet.generate(...)` the function, although importing binds this package to the name."""

    __call__ = staticmethod(generate)


sys.modules[__name__].__class__ = _CallablePackage
