"""The sampling of a call: what the options say, else what the model's authors published, else the defaults.

Hugging Face's `generation_config.json` holds the published values; only its sampling keys count here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bitnet.errors import ConfigError
from bitnet.generate import SamplingParams
from bitnet.json_file import CONFIG_BYTES, read_json_object

_PUBLISHED = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


def sampling_params(directory: Path, **options: Any) -> SamplingParams:
    """Join the options of a call with the published values of the model in `directory`.

    Args:
        options: fields of SamplingParams; None where the option was not given.
    Raises:
        ConfigError: generation_config.json holds something else than numbers.
        FormatError: it cannot be read.
        InputError: a value is out of range.
    """
    given = {key: value for key, value in options.items() if value is not None}
    return SamplingParams(**(_published(directory) | given))


def _published(directory: Path) -> dict[str, Any]:
    path = directory / "generation_config.json"
    if not path.exists():
        return {}
    values = read_json_object(path, CONFIG_BYTES)
    if values.get("do_sample") is False:
        return {"temperature": 0.0}
    published = {key: values[key] for key in _PUBLISHED if values.get(key) is not None}
    for key, value in published.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{path}: {key} is {value!r}; expected a number")
    return published
