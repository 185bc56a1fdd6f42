"""The options that generating verbs share, each defined once."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

_MODEL, _SAMPLING = "Model and engine", "Sampling"

Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="PATH_OR_ID",
        rich_help_panel=_MODEL,
        help="A folder, a GGUF file, or a Hub id such as microsoft/bitnet-b1.58-2B-4T "
        "(default: the story model).",
    ),
]
Engine = Annotated[
    Literal["cpu", "torch"],
    typer.Option(
        rich_help_panel=_MODEL, help="cpu is the C++ engine, torch the readable reference (needs PyTorch)."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        "-t",
        metavar="N",
        rich_help_panel=_MODEL,
        help="Default: BITNET_THREADS, else the physical cores.",
    ),
]
KvDtype = Annotated[
    Literal["auto", "float16", "float32", "int8", "int4", "int3"],
    typer.Option(
        rich_help_panel=_MODEL,
        help="How the cpu engine keeps keys and values; auto is float16, or what the model was made for.",
    ),
]
ContextSize = Annotated[
    int | None,
    typer.Option(
        "--ctx-size",
        "-c",
        metavar="N",
        rich_help_panel=_MODEL,
        help="Tokens that prompt and answer may take together (default: the model's limit).",
    ),
]
MaxTokens = Annotated[
    int | None, typer.Option("--max-tokens", "-n", metavar="N", help="Most tokens to write.")
]
Temperature = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        rich_help_panel=_SAMPLING,
        help="0 takes the likeliest token always; higher is more varied (default: the model's).",
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        metavar="N", rich_help_panel=_SAMPLING, help="Choose among the N likeliest tokens; 0 is all."
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        rich_help_panel=_SAMPLING,
        help="Choose among the likeliest tokens that together reach this probability (default: the model's).",
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        rich_help_panel=_SAMPLING,
        help="Drop tokens less likely than this share of the likeliest.",
    ),
]
RepeatPenalty = Annotated[
    float | None,
    typer.Option(
        metavar="X", rich_help_panel=_SAMPLING, help="Above 1, tokens that have occurred become less likely."
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(metavar="N", rich_help_panel=_SAMPLING, help="The same seed gives the same text."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(metavar="TEXT", rich_help_panel=_SAMPLING, help="End before this text; may be repeated."),
]
