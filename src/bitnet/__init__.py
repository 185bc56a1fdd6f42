"""bitnet: run, train and convert ternary (1.58-bit) language models.

    import bitnet
    model = bitnet.load_model()
    for piece in bitnet.stream(model, "Once upon a time"):
        print(piece, end="")

    load_model        a folder, a GGUF file, a Hub id or nothing -> a model
    generate, stream  continue a text, whole or piece by piece
    chat, Chat        answer a conversation; keep one going
    score             log-likelihoods of continuations
    embed             one vector a text

Names are imported when they are first used: `import bitnet` alone stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet.config import ModelConfig
    from bitnet.errors import (
        BitnetError,
        ConfigError,
        FormatError,
        InputError,
        ResourceError,
        UnsupportedError,
    )
    from bitnet.evaluate.scoring import Score, score
    from bitnet.generate import Chat, Generation, SamplingParams, generate, stream
    from bitnet.generate.chat import chat
    from bitnet.generate.embedding import embed
    from bitnet.load import load_model

    __version__: str

_HOME = {
    "ModelConfig": "bitnet.config",
    "BitnetError": "bitnet.errors",
    "ConfigError": "bitnet.errors",
    "FormatError": "bitnet.errors",
    "InputError": "bitnet.errors",
    "ResourceError": "bitnet.errors",
    "UnsupportedError": "bitnet.errors",
    "Score": "bitnet.evaluate.scoring",
    "score": "bitnet.evaluate.scoring",
    "Chat": "bitnet.generate",
    "chat": "bitnet.generate.chat",
    "embed": "bitnet.generate.embedding",
    "Generation": "bitnet.generate",
    "SamplingParams": "bitnet.generate",
    "generate": "bitnet.generate",
    "stream": "bitnet.generate",
    "load_model": "bitnet.load",
}

__all__ = [
    "BitnetError",
    "Chat",
    "ConfigError",
    "FormatError",
    "Generation",
    "InputError",
    "ModelConfig",
    "ResourceError",
    "SamplingParams",
    "Score",
    "UnsupportedError",
    "__version__",
    "chat",
    "embed",
    "generate",
    "load_model",
    "score",
    "stream",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("bitnet-ternary")
        except PackageNotFoundError:  # a source tree that was never installed
            return "0+unknown"
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'bitnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
