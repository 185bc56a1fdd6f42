"""What the generating verbs do with the standard streams: write pieces of text, report the speed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitnet.generate import Generation

# A model may write any character; a terminal would obey these instead of showing them.
_CONTROL = {code: "\ufffd" for code in (*range(32), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}

_ENDINGS = {
    "stop_token": "ended by the model",
    "stop_string": "ended by a stop text",
    "length": "ended by the length limit",
    None: "interrupted",
}


def write(text: str) -> None:
    """Show a piece of text at once."""
    sys.stdout.write(text.translate(_CONTROL) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def note(text: str) -> None:
    """Say something about the text on standard error, where it does not get into a pipe."""
    from rich.console import Console

    Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(text, style="dim")


def speed(generation: Generation) -> str:
    """One line about a generation."""
    cached = f" ({generation.cached_tokens} cached)" if generation.cached_tokens else ""
    return (
        f"prompt: {generation.prompt_tokens} tokens{cached}, {generation.prompt_rate:.1f} tokens/s · "
        f"generation: {len(generation.ids)} tokens, {generation.generation_rate:.1f} tokens/s · "
        f"{_ENDINGS[generation.stop_reason]}"
    )
