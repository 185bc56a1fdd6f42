"""One way to read a JSON object from a file that may be damaged or hostile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bitnet.errors import FormatError

_MAX_BYTES = 100_000_000  # no honest file here comes near
CONFIG_BYTES = 1 << 20  # of config.json and generation_config.json, which are a few kB
_MOST_DIGITS = 100  # Python refuses to print what products of numbers of thousands of digits are


def read_json_object(path: Path, most_bytes: int = _MAX_BYTES) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
        most_bytes: how large an honest file of this kind can be; one of short lists takes 20 times as much
            memory.
    Raises:
        FormatError: the file is missing, unreadable, too large, no JSON object, or names a key twice.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would make us wait
            raise FormatError(f"{path}: not a file")
        if path.stat().st_size > most_bytes:
            raise FormatError(f"{path}: is larger than {most_bytes:,} bytes; this is no configuration")
        return parse_json_object(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise FormatError(f"{path}: not found") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error})") from None


def parse_json_object(text: bytes, where: str) -> dict[str, Any]:
    """The object that `text` spells; `where` names it in messages.

    Raises:
        FormatError: not UTF-8, not JSON, no object, a key twice in one object, a number of over 100 digits.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in pairs:
            if key in values:
                raise FormatError(f"{where}: the key {key!r} stands there twice; keep one")
            values[key] = value
        return values

    def bounded(digits: str) -> int:
        if len(digits) > _MOST_DIGITS:
            raise ValueError(f"a number of {len(digits)} digits")
        return int(digits)

    try:
        values = json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_int=bounded)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not readable as JSON ({error})") from None
    if not isinstance(values, dict):
        raise FormatError(f"{where}: holds a {type(values).__name__}, expected a JSON object")
    return values
