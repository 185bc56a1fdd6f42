"""`bitnet eval`: accuracies and perplexities of a model on local files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from bitnet.cli import options

if TYPE_CHECKING:
    from bitnet.evaluate.scoring import Progress
    from bitnet.evaluate.tasks import Task, TaskResult

_PIPE_WIDTH = 120  # columns of a table that goes into a pipe, which has no width of its own


def eval(  # the verb's name; nothing here needs Python's own
    tasks: Annotated[
        str,
        typer.Option(
            metavar="TASK:FILE,…",
            help="perplexity, arc_easy, piqa or blimp, each with a file; formats: docs/evaluation.md.",
        ),
    ],
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="PATH_OR_ID", help="A folder, a GGUF file or a Hub id.", show_default="the story model"
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only the first N questions or documents.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, metavar="N", help="Most contexts that run at once.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    engine: options.Engine = "cpu",
    threads: options.Threads = None,
    kv_dtype: options.KvDtype = "auto",
) -> None:
    """Measure a model: multiple choice by likelihood, and perplexity.

    Prompts, windows and metrics are those of lm-evaluation-harness, without examples in the prompt. The
    files are read before the model is loaded.
    """
    from bitnet.evaluate.tasks import parse_tasks
    from bitnet.load import load_model

    wanted = parse_tasks(tasks, limit)
    loaded = load_model(model, engine, threads, kv_dtype=kv_dtype)
    results = []
    for task in wanted:
        with _progress(task) as show:
            results.append(task.run(loaded, batch, show))
    if as_json:
        summary = {"model": model or "stories", "engine": engine, "limit": limit}
        print(json.dumps(summary | {"tasks": [r.to_json() for r in results]}, indent=2, ensure_ascii=False))
    else:
        _print(results)


@contextmanager
def _progress(task: Task) -> Iterator[Progress]:
    """A bar on standard error while a task runs, where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        shown = bar.add_task(task.name, total=None)
        yield lambda done, total: bar.update(shown, completed=done, total=total)


def _print(results: list[TaskResult]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "items", "metric", box=None, pad_edge=False)
    for column in ("value", "± stderr"):
        table.add_column(column, justify="right")
    for result in results:
        unit, items = next(iter(result.counts.items()))
        first = (result.task, f"{items:,} {unit}")
        for metric in result.metrics:
            spread = "" if metric.stderr is None else f"{metric.stderr:.4f}"
            table.add_row(*first, metric.name, f"{metric.value:.4f}", spread)
            first = ("", "")
    console = Console(highlight=False, markup=False)
    console = console if console.is_terminal else Console(highlight=False, markup=False, width=_PIPE_WIDTH)
    console.print(table)
    for result in results:
        cut = result.counts.get("truncated_tokens", 0)
        if cut:
            console.print(f"{result.task}: {cut:,} tokens of prompts did not fit the context and were cut")
