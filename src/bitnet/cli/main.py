"""The `bitnet` program: finds the verb, and turns what goes wrong into one line and an exit code.

Exit codes: 0 well done, 1 a check failed (doctor), 2 the user's input or machine, 130 interrupted.
A traceback means a defect of the library.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Annotated, NoReturn

import typer

import bitnet
from bitnet.errors import BitnetError

VERBS = (
    "generate",
    "chat",
    "info",
    "convert",
    "eval",
    "bench",
    "doctor",
    "synthesize",
    "prepare",
    "tokenizer",
    "train",
)


def build(verbs: Iterable[str]) -> typer.Typer:
    """The program with the named verbs; each is the function, or the group, of that name in its module."""
    app = typer.Typer(
        help="Run and train ternary (1.58-bit) language models.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for verb in verbs:
        found = getattr(import_module(f"bitnet.cli.{verb}"), verb)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=verb)
        else:
            app.command(verb)(found)
    return app


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the program and exit."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a model may write what the terminal's encoding lacks
        sys.stdout.reconfigure(errors="replace")
    # Only the verb that is asked for is imported; help and mistyped verbs need them all.
    asked = [verb for verb in arguments[:1] if verb in VERBS]
    try:
        build(asked or VERBS)(args=arguments, prog_name="bitnet")
    except KeyboardInterrupt:
        sys.exit(130)
    except BitnetError as error:
        _fail(str(error))
    except MemoryError:
        _fail(
            "not enough memory; use a smaller model, or a shorter context (--ctx-size where there is one, "
            "max_position_embeddings in config.json)"
        )
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    sys.exit(0)


def _fail(message: str) -> NoReturn:
    print("error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _print_version(wanted: bool) -> None:
    if wanted:
        print("bitnet", bitnet.__version__)
        raise typer.Exit()


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Shown by `bitnet --help`; the help text stands in `build`."""
