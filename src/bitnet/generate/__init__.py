"""From a prompt to its continuation: prefill and decode, sampling, stop conditions, multi-turn chat."""

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
