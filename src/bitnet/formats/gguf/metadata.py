"""GGUF's keys and values in memory, with typed access that names the key when a value is not what it must be.

Arrays stay where they are in the mapped file: numbers as a view, strings as their places. A vocabulary
becomes Python strings only when it is asked for.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import ConfigError, FormatError

# value type id -> NumPy dtype; 8 is a string, 9 an array
SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("u1"),
    1: np.dtype("i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("u1"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
BOOL, STRING, ARRAY = 7, 8, 9


@dataclass(frozen=True)
class StringArray:
    """An array of strings in a mapped file, whose places were checked when it was found.

    Attributes:
        count: how many.
        start, end: the bytes from the first length word to behind the last string.
    """

    buffer: mmap.mmap | bytes
    count: int
    start: int
    end: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[bytes]:
        place = self.start
        for _ in range(self.count):
            length = int.from_bytes(self.buffer[place : place + 8], "little")
            place += 8 + length
            yield self.buffer[place - length : place]


Value = bool | int | float | str | NDArray[Any] | StringArray


class Metadata(Mapping[str, Value]):
    """The keys of one file."""

    def __init__(self, values: Mapping[str, Value], where: str) -> None:
        self._values = values
        self.where = where

    def __getitem__(self, key: str) -> Value:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def integer(self, key: str) -> int | None:
        """A whole number, or None where the key is absent; ConfigError if it is something else."""
        value = self._values.get(key)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        raise self._wrong(key, value, "a whole number")

    def required_integer(self, key: str) -> int:
        """A whole number; ConfigError if it is absent or something else."""
        value = self.integer(key)
        if value is None:
            raise ConfigError(f"{self.where}: {key} is missing")
        return value

    def number(self, key: str) -> float | None:
        """A float: the shortest decimal that is the stored one, so that 1e-5 comes back as it was written."""
        value = self._values.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        with np.errstate(over="ignore"):
            return float(str(np.float32(value)))

    def text(self, key: str) -> str | None:
        """A string, or None."""
        value = self._values.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._wrong(key, value, "a string")

    def boolean(self, key: str) -> bool | None:
        """True, False or None."""
        value = self._values.get(key)
        if value is None or isinstance(value, bool):
            return value
        raise self._wrong(key, value, "true or false")

    def strings(self, key: str, most: int) -> list[str]:
        """An array of strings.

        Args:
            most: how many there may be; more are refused before they are made.
        Raises:
            ConfigError: the key is absent or no such array.
            FormatError: there are more, or one is not UTF-8.
        """
        value = self._values.get(key)
        if not isinstance(value, StringArray):
            raise self._wrong(key, value, "an array of strings")
        if len(value) > most:
            raise FormatError(f"{self.where}: {key} has {len(value):,} entries; at most {most:,} make sense")
        try:
            return [item.decode("utf-8") for item in value]
        except UnicodeDecodeError as error:
            raise FormatError(f"{self.where}: {key} holds a string that is not UTF-8 ({error})") from None

    def integers(self, key: str, count: int) -> NDArray[np.integer[Any]] | None:
        """An array of `count` whole numbers, or None where the key is absent."""
        value = self._values.get(key)
        if value is None:
            return None
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or len(value) != count:
            raise self._wrong(key, value, f"an array of {count:,} whole numbers")
        return value

    def _wrong(self, key: str, value: Value | None, expected: str) -> ConfigError:
        if value is None:
            found = "missing"
        elif isinstance(value, StringArray):
            found = f"an array of {len(value):,} strings"
        elif isinstance(value, np.ndarray):
            found = f"an array of {len(value):,} numbers"
        else:
            found = repr(value)[:60]
        return ConfigError(f"{self.where}: {key} is {found}; expected {expected}")
