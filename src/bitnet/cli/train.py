"""`bitnet train`: start a run from YAML and overrides, resume it, draw its schedule, export its model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from bitnet.errors import InputError, ResourceError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bitnet.formats.checkpoint import Checkpoint
    from bitnet.train.config import TrainingConfig
    from bitnet.train.parallel import Parallel

_RUN, _SHORT, _OUTPUT = "Run", "Short forms", "Output"


def train(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG.yaml]", help="See docs/training.md for all keys.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", rich_help_panel=_RUN, help="The run's folder."),
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KEY=VALUE",
            rich_help_panel=_RUN,
            help="Put a value over the file's, for example data.batch_size=16; may be repeated.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", rich_help_panel=_RUN, help="Continue the run in --out; --set may change it."
        ),
    ] = False,
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            rich_help_panel=_RUN,
            show_default="the prepared data's or checkpoint's, else one trained on the data",
            help="A tokenizer.json.",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads", "-t", min=1, metavar="N", rich_help_panel=_RUN, help="CPU threads a process."
        ),
    ] = None,
    launcher: Annotated[
        Literal["ray"] | None,
        typer.Option(
            rich_help_panel=_RUN,
            help="ray: train in --workers processes of a Ray cluster, or of this machine.",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, metavar="N", rich_help_panel=_RUN, help="Processes of --launcher.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(rich_help_panel=_SHORT, help="model.preset, the model's shape.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH[:PASSES[@UNTIL]]",
            rich_help_panel=_SHORT,
            help="data.sources: a folder of bitnet prepare, or a text; may be repeated. PASSES: how often "
            "it is read (0.5: half of it). UNTIL: its passes end at this fraction of the run.",
        ),
    ] = None,
    heldout: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", rich_help_panel=_SHORT, help="data.heldout; may be repeated."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            "--steps", "-n", metavar="N", rich_help_panel=_SHORT, help="schedule.horizon, in optimiser steps."
        ),
    ] = None,
    plot_schedule: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", rich_help_panel=_OUTPUT, help="Draw the schedule; do not train."),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            rich_help_panel=_OUTPUT,
            help="Write the model of the run's last checkpoint; do not train.",
        ),
    ] = None,
    export_format: Annotated[
        Literal["packed", "bf16"],
        typer.Option(
            rich_help_panel=_OUTPUT, help="packed: 2 bits a weight (binary: 1); bf16: masters to train on."
        ),
    ] = "packed",
) -> None:
    """Train a ternary or binary model, on one process, under torchrun, or in workers of Ray.

    Ctrl-C saves the state and ends; --resume goes on from there to the bit.
    """
    _require("torch", "matplotlib", "pydantic", "yaml", "filelock")
    short = _short_forms(preset, data, heldout, steps)
    changes = [*short, *(assignments or ())]
    if plot_schedule is not None:
        _plot(_values(config, out, resume, changes), plot_schedule)
        return
    if out is None:
        raise InputError("--out is missing; the run needs a folder")
    if (launcher is None) != (workers is None):
        raise InputError("--launcher and --workers go together: --launcher ray --workers 2")
    if resume and export is None and (config is not None or tokenizer is not None):
        raise InputError(
            f"--resume takes configuration and tokenizer from {out}; leave the others out, and "
            "change single values by --set"
        )
    if export is not None:
        work = partial(_export, out, export, export_format)
    elif resume:
        work = partial(_run, out, None, changes, tokenizer)
    else:
        work = partial(_run, out, _values(config, out, resume, changes), (), tokenizer)
    if workers is None:
        _join(work, threads)
    else:
        from bitnet.train.ray_launcher import launch

        launch(partial(_join, work, threads), workers, out, threads)


def _join(work: Callable[[Parallel], None], threads: int | None) -> None:
    """Do the work as one process of the run's."""
    import torch

    from bitnet.train.parallel import processes

    if threads is not None:
        torch.set_num_threads(threads)
    with processes() as parallel:
        work(parallel)


def _require(*packages: str) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise ResourceError(f"training needs {package}; pip install 'bitnet-ternary[train]' brings it")


def _short_forms(
    preset: str | None, data: list[str] | None, heldout: list[str] | None, steps: int | None
) -> list[str]:
    """The short options as `--set` assignments; YAML takes JSON, which quotes any path."""
    import json

    from bitnet.train.config import DataSource

    sources = [vars(DataSource.parse(text)) for text in data or ()]
    keep = ("path", "passes", "until")
    pairs = {
        "model.preset": preset,
        "data.sources": [{key: source[key] for key in keep} for source in sources] or None,
        "data.heldout": heldout or None,
        "schedule.horizon": steps,
    }
    return [
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in pairs.items() if value is not None
    ]


def _values(config: Path | None, out: Path | None, resume: bool, changes: list[str]) -> dict[str, Any]:
    """The plain configuration of a new run, or with `resume` of an old one."""
    from bitnet.train.config import CONFIG_FILE
    from bitnet.train.yaml_file import override, read_yaml

    if resume and out is not None:
        config = out / CONFIG_FILE
    if config is None and not changes:
        raise InputError(
            "nothing to do; give a CONFIG.yaml, or --preset, --data and --steps, or --resume for an old run"
        )
    return override({} if config is None else read_yaml(config), changes)


def _run(
    out: Path,
    values: dict[str, Any] | None,
    changes: tuple[str, ...] | list[str],
    tokenizer: Path | None,
    parallel: Parallel,
) -> None:
    """Start (`values`) or resume a run, and train."""
    from bitnet.train.trainer import Trainer

    if values is None:
        trainer = Trainer.resume(out, changes, parallel)
    else:
        start = _prepare(values, tokenizer, parallel)
        trainer = Trainer.create(
            out, start.config, start.tokenizer, parallel, start.initial, start.chat_template
        )
    if not trainer.run():
        if parallel.first:
            print(f"stopped at step {trainer.step} of {trainer.schedule.steps}; add --resume to continue")
        raise typer.Exit(130)
    if parallel.first:
        print(f"{out}: finished {trainer.step} steps")


def _export(out: Path, directory: Path, form: str, parallel: Parallel) -> None:
    from bitnet.train.trainer import Trainer

    trainer = Trainer.resume(out, (), parallel)
    if trainer.step == 0:
        raise InputError(f"{out}: has no checkpoint yet; there is nothing to export")
    trainer.export(directory, "offline" if form == "packed" else "online")
    if parallel.first:
        print(f"{directory}: {form} model of step {trainer.step}")


def _plot(values: dict[str, Any], path: Path) -> None:
    """Draw every curve at up to 1,000 steps."""
    from bitnet.quant_config import Inputs
    from bitnet.train.config import TrainingConfig
    from bitnet.train.plots import plot_schedule
    from bitnet.train.schedule import Schedule

    _shape_of_masters(values)
    config = TrainingConfig.from_dict(values)
    schedule = Schedule(config.schedule, config.data.tokens_per_step)
    steps = sorted({round(part * (schedule.steps - 1) / 999) for part in range(1000)})
    at = [schedule.at(step) for step in steps]
    curves: dict[str, tuple[list[int], Sequence[float]]] = {
        "learning rate": (steps, [values.learning_rate for values in at]),
        "weight decay": (steps, [values.weight_decay for values in at]),
        "quantiser strength λ": (steps, [values.quantizer_strength for values in at]),
        "activation bits": (steps, [values.activation_bits for values in at]),
    }
    if config.model.quantization.inputs != Inputs():
        curves["low-bit inputs"] = (steps, [float(values.low_bit) for values in at])
    plot_schedule(curves, path, "step")
    print(f"{path}: {schedule.steps} steps")


@dataclass(frozen=True)
class _Start:
    """What a new run is made of."""

    config: TrainingConfig
    tokenizer: Tokenizer
    chat_template: str | None
    initial: Checkpoint | None


def _prepare(values: dict[str, Any], tokenizer_file: Path | None, parallel: Parallel) -> _Start:
    """Resolve what a new run leaves open: shape and tokenizer of a checkpoint, vocabulary of the data."""
    from bitnet.train.config import TrainingConfig
    from bitnet.train.sources import refuse_hub
    from bitnet.train.tokenizer import id_bound, load_tokenizer, read_chat_template, separator_ids

    initial = _shape_of_masters(values)
    config = TrainingConfig.from_dict(values)
    for path in (*(source.path for source in config.data.sources), *config.data.heldout):
        refuse_hub(path)
    source = _tokenizer_source(config, tokenizer_file, initial)
    if source is None:
        tokenizer, template = _learn_tokenizer(config, parallel), None
    else:
        tokenizer = load_tokenizer(source)
        template = read_chat_template(source if source.is_dir() else source.parent)
    if initial is None:
        separator = separator_ids(tokenizer)
        size = config.model.vocab_size if "vocab_size" in values["model"] else id_bound(tokenizer)
        model = replace(
            config.model, vocab_size=size, bos_token_id=separator[-1], eos_token_id=(separator[0],)
        )
        config = replace(config, model=model)
    return _Start(config, tokenizer, template, initial)


def _shape_of_masters(values: dict[str, Any]) -> Checkpoint | None:
    """The checkpoint that a run continues from, if any; the model is as it says."""
    from bitnet.formats.checkpoint import read_checkpoint
    from bitnet.train.masters import model_values

    if values.get("initial") is None:
        return None
    initial = read_checkpoint(str(values["initial"]))
    values["model"] = model_values(values.get("model"), initial)
    return initial


def _tokenizer_source(config: TrainingConfig, file: Path | None, initial: Checkpoint | None) -> Path | None:
    """The file given; else the checkpoint's or the prepared data's folder; None: one must be learned."""
    prepared = [Path(source.path) for source in config.data.sources if Path(source.path).is_dir()]
    checkpoint = initial.directory if initial is not None else None
    return file or checkpoint or (prepared[0] if prepared else None)


def _learn_tokenizer(config: TrainingConfig, parallel: Parallel) -> Tokenizer:
    from tokenizers import Tokenizer

    from bitnet.train.tokenizer import train_tokenizer

    size = config.model.vocab_size
    learned = parallel.from_first(lambda: train_tokenizer(config.data.sources, size, config.seed).to_str())
    tokenizer: Tokenizer = Tokenizer.from_str(learned)
    return tokenizer
