"""`bitnet train`: train a model on text files, resume a run, export its checkpoint."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from bitnet.errors import InputError, ResourceError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bitnet.config import ModelConfig
    from bitnet.train.config import DataSource

_DATA, _SCHEDULE, _OUTPUT = "Model and data", "Schedule", "Output"


def train(
    out: Annotated[Path, typer.Option("--out", "-o", help="The run's folder: state, curve, tokenizer.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:PASSES[@UNTIL]]",
            rich_help_panel=_DATA,
            help="Text, documents separated by a line <|endoftext|>; may be repeated. PASSES: how often "
            "it is read (0.5: half of it). UNTIL: its passes end at this fraction of the text.",
        ),
    ] = None,
    heldout: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_DATA,
            help="Text to evaluate on, in bits per byte; may be repeated.",
        ),
    ] = None,
    preset: Annotated[str, typer.Option(rich_help_panel=_DATA, help="The model's shape.")] = "stories",
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_DATA,
            show_default="one trained on the data",
            help="A tokenizer.json.",
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=_DATA,
            show_default="the tokenizer's or preset's",
            help="Vocabulary entries.",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps",
            "-n",
            metavar="N",
            rich_help_panel=_SCHEDULE,
            help="Optimiser steps: the schedule's length.",
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(metavar="N", rich_help_panel=_SCHEDULE, show_default="8", help="Sequences a step."),
    ] = None,
    seq: Annotated[
        int | None,
        typer.Option(metavar="N", rich_help_panel=_SCHEDULE, show_default="256", help="Tokens a sequence."),
    ] = None,
    lr: Annotated[
        float,
        typer.Option(metavar="X", rich_help_panel=_SCHEDULE, help="Peak learning rate of the first stage."),
    ] = 1.5e-3,
    second_lr: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            rich_help_panel=_SCHEDULE,
            show_default="2/3 of --lr",
            help="Peak of the second stage's line.",
        ),
    ] = None,
    warmup: Annotated[int, typer.Option(metavar="N", rich_help_panel=_SCHEDULE, help="Warm-up steps.")] = 100,
    switch: Annotated[
        float,
        typer.Option(metavar="X", rich_help_panel=_SCHEDULE, help="Where the second stage starts, 0..1."),
    ] = 0.5,
    weight_decay: Annotated[
        float,
        typer.Option(metavar="X", rich_help_panel=_SCHEDULE, help="Of the first stage; the second has none."),
    ] = 0.1,
    clip: Annotated[
        float, typer.Option(metavar="X", rich_help_panel=_SCHEDULE, help="Largest norm of a step's gradient.")
    ] = 1.0,
    seed: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=_SCHEDULE, help="Of initial weights and data order.")
    ] = 0,
    precision: Annotated[
        Literal["float32", "bfloat16"],
        typer.Option(
            rich_help_panel=_SCHEDULE, help="Of the matrix products; masters and quantisers are float32."
        ),
    ] = "float32",
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", rich_help_panel=_SCHEDULE, help="Use torch.compile (needs a C++ compiler)."
        ),
    ] = False,
    threads: Annotated[int | None, typer.Option("--threads", "-t", metavar="N", help="CPU threads.")] = None,
    log_every: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=_OUTPUT, help="Steps a row of loss.csv.")
    ] = 10,
    eval_every: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=_OUTPUT, help="Steps between evaluations.")
    ] = 250,
    save_every: Annotated[
        int, typer.Option(metavar="N", rich_help_panel=_OUTPUT, help="Steps between saved states.")
    ] = 250,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            rich_help_panel=_OUTPUT,
            help="Continue the run in --out; --steps, --data, --batch and --seq may change.",
        ),
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=_OUTPUT,
            help="Write the result as a model folder; without --data and --resume, only that.",
        ),
    ] = None,
    export_format: Annotated[
        Literal["packed", "bf16"],
        typer.Option(rich_help_panel=_OUTPUT, help="packed: 2 bits a weight; bf16: masters to train on."),
    ] = "packed",
) -> None:
    """Train a ternary model on text files.

    Ctrl-C saves the state and ends; --resume goes on from there to the bit.
    """
    for package in ("torch", "matplotlib"):
        if find_spec(package) is None:
            raise ResourceError(f"training needs {package}; pip install 'bitnet-ternary[torch]' brings it")
    import torch

    from bitnet.train.config import DataSource, TrainingConfig
    from bitnet.train.export import export as write_export
    from bitnet.train.trainer import Trainer

    if threads is not None:
        torch.set_num_threads(threads)
    sources = tuple(DataSource.parse(text) for text in data or ())
    if not (sources or resume or export):
        raise InputError("nothing to do; give --data to train, --resume to continue, or --export")
    if resume or not sources:
        changes = {"steps": steps, "data": sources, "batch_size": batch, "sequence_length": seq}
        trainer = Trainer.resume(out, {key: value for key, value in changes.items() if value})
    elif steps is None:
        raise InputError("--steps is missing; the schedule needs its length")
    else:
        shape, vocabulary = _model_and_tokenizer(preset, tokenizer, vocab_size, sources, seed)
        config = TrainingConfig(
            model=shape,
            data=sources,
            steps=steps,
            heldout=tuple(str(path) for path in heldout or ()),
            batch_size=batch or 8,
            sequence_length=seq or 256,
            learning_rate=lr,
            second_learning_rate=second_lr or lr * 2 / 3,
            warmup_steps=warmup,
            switch=switch,
            weight_decay=weight_decay,
            clip=clip,
            seed=seed,
            precision=precision,
            compile=compiled,
            log_every=log_every,
            evaluate_every=eval_every,
            save_every=save_every,
        )
        trainer = Trainer.create(out, config, vocabulary)
    if (resume or sources) and not trainer.run():
        print(f"stopped at step {trainer.step} of {trainer.config.steps}; add --resume to continue")
        raise typer.Exit(130)
    if export is not None:
        mode: Literal["offline", "online"] = "offline" if export_format == "packed" else "online"
        write_export(trainer.model, trainer.tokenizer, export, mode)
        print(f"{export}: {export_format} model of step {trainer.step}")


def _model_and_tokenizer(
    preset: str, path: Path | None, vocab_size: int | None, sources: tuple[DataSource, ...], seed: int
) -> tuple[ModelConfig, Tokenizer]:
    """The preset with the tokenizer's vocabulary, and the tokenizer itself, read or trained."""
    from bitnet.config import preset as find_preset
    from bitnet.train.data import SEPARATOR
    from bitnet.train.tokenizer import load_tokenizer, train_tokenizer

    shape = find_preset(preset)
    if path is None:
        tokenizer = train_tokenizer(sources, vocab_size or shape.vocab_size, seed)
    else:
        tokenizer = load_tokenizer(path)
    end = tokenizer.token_to_id(SEPARATOR)
    assert end is not None, "both kinds of tokenizer hold the separator"
    size = vocab_size or tokenizer.get_vocab_size()
    return replace(shape, vocab_size=size, bos_token_id=end, eos_token_id=(end,)), tokenizer
