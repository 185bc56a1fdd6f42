"""`bitnet generate`: continue a text, streaming it to standard output."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from bitnet.cli import options
from bitnet.errors import InputError

if TYPE_CHECKING:
    from bitnet.generate import Model, SamplingParams, Stream

_STORY_OPENING = "Once upon a time"


def generate(
    prompt: Annotated[
        str | None,
        typer.Argument(help="The text to continue (default: what a pipe brings, or a story's opening)."),
    ] = None,
    ids: Annotated[
        str | None, typer.Option(metavar="1,2,3", help="Token ids to continue, instead of a text.")
    ] = None,
    max_tokens: options.MaxTokens = 256,
    echo: Annotated[bool, typer.Option(help="Print the prompt before its continuation.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not report the speed.")] = False,
    model: options.Model = None,
    engine: options.Engine = "cpu",
    threads: options.Threads = None,
    kv_dtype: options.KvDtype = "auto",
    ctx_size: options.ContextSize = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
) -> None:
    """Continue a text. The speed is reported on standard error.

    Without a model named, the embedded one tells a story. A model without a tokenizer takes and prints ids.
    """
    from bitnet.cli.sampling import sampling_params
    from bitnet.cli.terminal import note, speed, write
    from bitnet.formats.hub import resolve
    from bitnet.load import embedded_model, load_model

    start = _parse_ids(ids, prompt) if ids is not None else _find_prompt(prompt, embedded=model is None)
    directory = embedded_model() if model is None else resolve(model)
    params = sampling_params(
        directory,
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repeat_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    loaded = load_model(directory, engine, threads, kv_dtype=kv_dtype)
    answer = _begin(loaded, start, params, ctx_size)
    if echo and isinstance(start, str):
        write(start)
    try:
        _print(answer, as_text=loaded.tokenizer is not None)
    finally:
        write("\n")
        if answer.ids and not quiet:
            note(speed(answer.result))


def _parse_ids(ids: str, prompt: str | None) -> list[int]:
    if prompt is not None:
        raise InputError("both a prompt and --ids are given; give one")
    numbers = []
    for word in ids.split(","):
        try:
            numbers.append(int(word))
        except ValueError:
            raise InputError(f"--ids: {word.strip()!r} is no whole number; write --ids 1,2,3") from None
    return numbers


def _find_prompt(prompt: str | None, embedded: bool) -> str:
    if prompt is None:
        if not sys.stdin.isatty():
            prompt = _read_pipe()
        elif embedded:
            prompt = _STORY_OPENING
        else:
            raise InputError("no prompt; give one in quotes, or through a pipe")
    if not prompt:
        raise InputError("the prompt is empty; give a text in quotes, or through a pipe")
    return prompt


def _read_pipe() -> str:
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text (at byte {error.start})") from None
    # `echo` ends its line; the model should be able to go on in it.
    return text.removesuffix("\n").removesuffix("\r")


def _begin(model: Model, start: str | Sequence[int], params: SamplingParams, ctx_size: int | None) -> Stream:
    from bitnet.generate import stream

    if ctx_size is None:
        return stream(model, start, params)
    limit = model.config.max_position_embeddings
    if not 1 <= ctx_size <= limit:
        raise InputError(f"--ctx-size is {ctx_size}; it must lie in 1..{limit}, the model's context")
    if isinstance(start, str) and model.tokenizer is not None:
        start = model.tokenizer.encode(start)
    if len(start) > ctx_size:
        raise InputError(f"the prompt has {len(start)} tokens; --ctx-size allows {ctx_size}")
    # The last token written is not run, so it needs no place.
    return stream(model, start, replace(params, max_tokens=min(params.max_tokens, ctx_size - len(start) + 1)))


def _print(answer: Stream, as_text: bool) -> None:
    from bitnet.cli.terminal import write

    for piece in answer:
        if as_text:
            write(piece)
        else:
            write(f"{',' if len(answer.ids) > 1 else ''}{answer.ids[-1]}")
