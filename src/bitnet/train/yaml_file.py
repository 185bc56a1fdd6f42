"""YAML from people: files that hold a mapping, and `a.b=c` assignments on top of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bitnet.errors import ConfigError, FormatError

_MOST_BYTES = 1 << 20  # of a YAML file; parsing takes seconds a megabyte


class _Loader(yaml.SafeLoader):
    """YAML without references, by which a small file can stand for gigabytes or hold itself; no key twice.

    1e-5 is a number, as in YAML 1.2; YAML 1.1 wants a dot in it and a sign behind the e, else it is text.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references (*name) are not read; write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [name for name, number in Counter(names).items() if number > 1]
        if twice:
            raise yaml.YAMLError(f"{twice[0]} is given twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _parse(text: str) -> object:
    """Raises yaml.YAMLError: the text is no YAML."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise
    except Exception as error:  # of a date like 2020-13-45, of !!int "", of [[[[…: each another
        raise yaml.YAMLError(f"{type(error).__name__}: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping a YAML file holds.

    Raises:
        FormatError: the file is missing, no YAML, or holds something else.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise FormatError(f"{path}: has more than {_MOST_BYTES} bytes; that is no training configuration")
        values = _parse(content.decode("utf-8"))
    except FileNotFoundError:
        raise FormatError(f"{path}: not found") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FormatError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise FormatError(f"{path}: holds no keys; a training configuration has model, data and schedule")
    return values


def override(values: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Put `a.b=c` assignments on top of plain values; c is read as YAML.

    Raises:
        ConfigError: an assignment is malformed, or goes through a key that holds a plain value.
    """
    result = _copy(values)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"--set {assignment!r}: write KEY=VALUE, for example schedule.horizon=1000")
        section = result
        for key in keys[:-1]:
            if section.get(key) is None:  # `compute:` with nothing behind it is an empty section
                section[key] = {}
            section = section[key]
            if not isinstance(section, dict):
                raise ConfigError(f"--set {assignment!r}: {key} is no section, it holds {section!r}")
        try:
            section[keys[-1]] = _parse(text)
        except yaml.YAMLError:
            raise ConfigError(f"--set {assignment!r}: {text!r} is not readable as YAML") from None
    return result


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}
