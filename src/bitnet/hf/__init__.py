"""The plug-in for transformers: BitNet checkpoints run on our kernels inside `AutoModelForCausalLM`, on CPUs.

    import bitnet.hf
    from transformers import pipeline
    pipe = pipeline("text-generation", "microsoft/bitnet-b1.58-2B-4T")

The import puts `quantizer.KernelQuantizer` in the place of transformers' own quantizer for checkpoints of
`quant_method` "bitnet". Attention, norms, cache, sampling and `generate` stay transformers' own. Models that
are loaded already keep what they have. transformers has no entry point that would make the import needless.

Needs the extra `transformers`.
"""

from __future__ import annotations

from bitnet.errors import ResourceError

try:
    from transformers.quantizers import auto
except ModuleNotFoundError as error:
    raise ResourceError(
        f"bitnet.hf needs the package {(error.name or 'transformers').split('.')[0]}; "
        "install the extra `transformers`"
    ) from None

from bitnet.hf.linear import KernelHead, KernelLinear
from bitnet.hf.quantizer import KernelQuantizer

__all__ = ["KernelHead", "KernelLinear", "KernelQuantizer", "disable", "enable"]

_THEIRS = auto.AUTO_QUANTIZER_MAPPING["bitnet"]


def enable() -> None:
    """Load BitNet checkpoints with our kernels from now on; importing this package does it, too."""
    auto.AUTO_QUANTIZER_MAPPING["bitnet"] = KernelQuantizer


def disable() -> None:
    """Load BitNet checkpoints as transformers alone does from now on, e.g. to train bf16 masters."""
    auto.AUTO_QUANTIZER_MAPPING["bitnet"] = _THEIRS


enable()
