"""Rendering a chat template: jinja2 in its sandbox, with the names transformers gives a template.

This file is also a program: `chat_template` runs foreign templates through it in a process of their own.
It therefore imports nothing of this package. One JSON object comes on stdin (`source`, `variables`,
`path`, `seconds`, `bytes`), one goes to stdout: {"text": …}, {"refused": …} or {"error": …}.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any, NoReturn


class Refused(Exception):  # noqa: N818 - an answer of the template, not a fault
    """The template called `raise_exception`: it does not accept these messages."""


def render(source: str, variables: dict[str, Any]) -> str:
    """The text of a template.

    Raises:
        Refused: by the template itself.
        jinja2.TemplateError and whatever else a template manages to raise.
    """
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """transformers' `{% generation %}` marks answers for training; here it is its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: object) -> NoReturn:
        raise Refused(str(message))

    def tojson(value: object, indent: int | None = None) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = datetime.now().strftime
    return environment.from_string(source).render(variables)


def _limit(seconds: int, memory: int) -> None:
    """Let the kernel end a template that computes or grows without end."""
    try:
        import resource
    except ImportError:  # Windows: only the parent's timeout holds there
        return
    for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory)):
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):  # macOS bounds no address space
            continue


def _main() -> None:
    request = json.loads(sys.stdin.buffer.read())
    sys.path[:] = request["path"]
    _limit(request["seconds"], request["bytes"])
    try:
        reply = {"text": render(request["source"], request["variables"])}
    except Refused as refusal:
        reply = {"refused": str(refusal)}
    except Exception as error:
        reply = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.buffer.write(json.dumps(reply).encode())


if __name__ == "__main__":
    _main()
