"""Chat templates: messages to the one string a model was trained on.

A template comes with a checkpoint, from anywhere, and is a program. jinja2's sandbox keeps it from the
interpreter's insides, but not from running for ever or filling the memory (two nested loops, `'a' * 10**10`),
so foreign templates render in a process of their own that the kernel limits. It costs about a tenth of a
second. 2B4T's own template is known and renders in this process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitnet.errors import FormatError, InputError, ResourceError
from bitnet.tokenizer import render as renderer

# The published template of microsoft/bitnet-b1.58-2B-4T.
CHAT_TEMPLATE_2B4T = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = message['role'] | capitalize + ': '+ message['content'] | trim + '<|eot_id|>' %}"
    "{{ content }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
_SECONDS = 4  # of computing; the longest real templates need milliseconds
_MEMORY = 1 << 29  # bytes of address space: Python and jinja2 take 40 MB
_LARGEST_SOURCE = 1 << 20  # characters; the longest real templates have 20,000


class ChatTemplate:
    """A checkpoint's chat template.

    Args:
        source: jinja2.
        where: its file, for error messages.
    """

    def __init__(self, source: str, where: str) -> None:
        if len(source) > _LARGEST_SOURCE:
            raise FormatError(
                f"{where}: the chat template has {len(source)} characters, at most {_LARGEST_SOURCE}"
            )
        self.source = source
        self.where = where

    def render(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool, special: Mapping[str, str]
    ) -> str:
        """The text of a conversation.

        Args:
            special: the tokens a template may name, such as `bos_token`.
        Raises:
            FormatError: the template is broken, or takes too long or too much memory.
            InputError: the template refuses these messages.
            ResourceError: no process could be started for it.
        """
        variables: dict[str, Any] = {
            **special,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": add_generation_prompt,
        }
        if self.source == CHAT_TEMPLATE_2B4T:
            return renderer.render(self.source, variables)
        reply = self._render_apart(variables)
        if isinstance(reply.get("text"), str):
            return str(reply["text"])
        if "refused" in reply:
            raise InputError(f"{self.where}: the template refuses the messages: {_line(reply['refused'])}")
        raise FormatError(f"{self.where}: the chat template fails: {_line(reply.get('error'))}")

    def _render_apart(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        request = {
            "source": self.source,
            "variables": variables,
            "path": sys.path,
            "seconds": _SECONDS,
            "bytes": _MEMORY,
        }
        command = [sys.executable, "-I", str(Path(renderer.__file__))]
        try:
            done = subprocess.run(
                command,
                input=json.dumps(request).encode(),
                capture_output=True,
                timeout=5 * _SECONDS,  # waiting costs nothing, and the machine may be busy
                # A preloaded sanitizer reserves more address space than the limit.
                env={name: value for name, value in os.environ.items() if name != "LD_PRELOAD"},
                start_new_session=True,  # Ctrl-C is for the answer, not for this
                check=False,
            )
            if done.returncode > 0:  # below 0 by a signal, as the kernel ends what is over its limits
                last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
                raise FormatError(f"{self.where}: the chat template cannot be rendered: {_line(last)}")
            reply = json.loads(done.stdout)
        except (subprocess.TimeoutExpired, ValueError) as error:
            if isinstance(error, FormatError):
                raise
            reply = {"error": f"it takes more than {_SECONDS} s or {_MEMORY >> 20} MB"}
        except OSError as error:
            raise ResourceError(f"{self.where}: no process for the chat template: {error}") from None
        return reply if isinstance(reply, dict) else {}


def _line(text: object) -> str:
    """One harmless line of what a template or jinja2 said."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\s]+", " ", str(text))[:200].strip()
