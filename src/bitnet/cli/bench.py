"""`bitnet bench`: speed, bandwidth and memory of a model here, alone or in turn with another engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet.cli import options
from bitnet.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from bitnet.benchmark.peers import Peer
    from bitnet.benchmark.report import Row
    from bitnet.benchmark.session import Session

_LIST, _PEER = "N,N,…", "Comparison"


def bench(
    prompt: Annotated[
        str,
        typer.Option("--prompt", "-p", metavar=_LIST, help="Tokens of a prompt (prefill); 0 leaves it out."),
    ] = "512",
    generate: Annotated[
        str, typer.Option("--generate", "-n", metavar=_LIST, help="Tokens to decode; 0 leaves it out.")
    ] = "128",
    threads: Annotated[
        str | None,
        typer.Option(
            "--threads", "-t", metavar=_LIST, help="Default: BITNET_THREADS, else the physical cores."
        ),
    ] = None,
    repetitions: Annotated[
        int,
        typer.Option("--repetitions", "-r", metavar="N", help="Timed runs of each case, after a warm-up."),
    ] = 5,
    batch: Annotated[
        str, typer.Option("--batch", "-b", metavar=_LIST, help="Sequences decoded at once.")
    ] = "1",
    depth: Annotated[
        str, typer.Option("--depth", "-d", metavar=_LIST, help="Tokens in the cache before the clock starts.")
    ] = "0",
    model: options.Model = None,
    kv_dtype: options.KvDtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a row.")] = False,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the rows (needs the extra `bench`).")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="PEER",
            rich_help_panel=_PEER,
            help="transformers, llama.cpp, or llama-bench:PATH of any llama-bench program.",
        ),
    ] = None,
    gguf: Annotated[
        Path | None, typer.Option(metavar="FILE", rich_help_panel=_PEER, help="What the llama.cpp peers run.")
    ] = None,
) -> None:
    """Measure prefill (pp) and decode (tg) in llama-bench's terms.

    Decode runs forward passes on fixed ids: sampling and printing are not measured. First every kernel and
    the model's logits are checked, and nothing is measured when one is wrong (exit code 1).
    """
    from bitnet.benchmark.cases import Plan
    from bitnet.benchmark.report import plot as draw
    from bitnet.benchmark.report import require_plot
    from bitnet.benchmark.session import Session
    from bitnet.formats.hub import resolve
    from bitnet.load import embedded_model

    if plot is not None:
        require_plot(plot)
    plan = Plan(
        prompts=_numbers(prompt, "--prompt"),
        generations=_numbers(generate, "--generate"),
        threads=_numbers(threads, "--threads") if threads is not None else (_default_threads(),),
        batches=_numbers(batch, "--batch"),
        depths=_numbers(depth, "--depth"),
        repetitions=repetitions,
    )
    directory = embedded_model() if model is None else resolve(model)
    session = Session(directory, model or "stories", plan, kv_dtype)
    rows = _run(session, against, gguf, as_json)
    if plot is not None:
        draw(rows, plot)


def _numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers between commas, without repeats."""
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) < 8):
            raise InputError(f"{option}: {word!r} is no whole number; write one, or several as in 1,2,4")
    return tuple(dict.fromkeys(map(int, words)))


def _default_threads() -> int:
    from bitnet.cpu_model import thread_count

    return thread_count()


def _run(session: Session, against: str | None, gguf: Path | None, as_json: bool) -> list[Row]:
    from rich.console import Console

    from bitnet.benchmark.peers import find_peer

    notes = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    # found first: a peer that is missing should not cost a measurement
    peer = find_peer(against, session.directory, gguf) if against is not None else None
    with closing(peer) if peer is not None else nullcontext():
        _check_parity(session, notes)
        if peer is not None:
            _print_comparison(notes, session, peer)
        if not as_json:
            _print_machine(session)
        rows = list(_measured(session, peer, notes, as_json))
    if not as_json:
        _print_tables(rows)
    return rows


def _check_parity(session: Session, notes: Console) -> None:
    with notes.status("checking parity"):
        wrong = session.check()
    if wrong:
        for line in wrong:
            notes.print(f"wrong: {line}", style="red")
        notes.print("Nothing was measured: this build computes something else than it should.", style="red")
        raise typer.Exit(1)
    notes.print(
        "parity: every kernel agrees with scalar, and logits do not depend on threads or batch", style="dim"
    )


def _measured(session: Session, peer: Peer | None, notes: Console, as_json: bool) -> Iterator[Row]:
    with notes.status("") as status:
        for row in session.rows(peer, progress=status.update):
            if as_json:
                print(json.dumps(row.to_json(), ensure_ascii=False), flush=True)
            yield row


def _print_comparison(notes: Console, session: Session, peer: Peer) -> None:
    """What both sides compute, and what the peer leaves out."""
    notes.print(f"A  {session.describe()}")
    notes.print(f"B  {peer.describe()}")
    left_out = {peer.refusal(case) for case in session.plan.cases(1)} - {None}
    for reason in sorted(map(str, left_out)):
        notes.print(f"   {reason}: our numbers stand alone there")
    notes.print(
        "They run in turn, A B A B; ratios are of medians, in brackets least and most of a pair.", style="dim"
    )


def _print_machine(session: Session) -> None:
    facts: dict[str, Any] = session.facts
    source = f" ({facts['commit']})" if facts["commit"] else ""
    print(
        f"{facts['model']}: {facts['parameters']:,} parameters, {facts['head']} head, keys and values in "
        f"{facts['kv_dtype']}"
    )
    print(
        f"{facts['cpu']}, {facts['physical_cores']} cores, {facts['isa']}; bitnet {facts['version']}{source}"
    )


def _print_tables(rows: list[Row]) -> None:
    from rich.console import Console

    from bitnet.benchmark.report import loads_table, rates_table

    # a table that is cut or folded to a pipe's 80 columns cannot be read
    console = Console(highlight=False, markup=False)
    console = console if console.is_terminal else Console(highlight=False, markup=False, width=160)
    console.print("", rates_table(rows), "", loads_table(rows), sep="\n")
