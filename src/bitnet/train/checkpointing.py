"""A run's state on disk: `checkpoints/step-00000250/`, by torch.distributed.checkpoint.

Masters and Adam's moments are stored by parameter name in chunks that know their place, so another number of
processes can read them; `run.json` beside them holds the step, the schedule's curves, the guard and every
file's sha256: PyTorch does not notice a weight whose bits changed on disk. Nothing else is needed to go
on bit for bit: data order and schedule are functions of configuration and step.

A folder gets its name when it is whole; the last few stay. PyTorch's format holds a pickled index, and a hash
beside it proves no origin, so resume only runs you trust; models are exchanged as safetensors (export.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from bitnet.errors import FormatError, ResourceError
from bitnet.json_file import read_json_object
from bitnet.nn import Transformer
from bitnet.train.parallel import Parallel, is_lost_peer

FOLDER, FACTS_FILE = "checkpoints", "run.json"
_HASHES = "sha256"


def save_state(
    directory: Path,
    model: Transformer,
    optimizer: torch.optim.AdamW,
    step: int,
    facts: dict[str, Any],
    parallel: Parallel,
    keep: int,
) -> None:
    """Write the state after `step` optimiser steps, then drop all but the last `keep`; all processes call it.

    Args:
        directory: the run's folder.
        facts: plain values for `run.json`.
    Raises:
        ResourceError: the disk is full or not writable; older checkpoints stay as they were.
    """
    final = directory / FOLDER / f"step-{step:08d}"
    temporary = final.with_name(f".{final.name}.tmp")
    with _disk_errors(final, temporary, parallel):
        parallel.from_first(lambda: _make_empty(temporary))
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        with _alone(parallel):
            save(state, checkpoint_id=temporary, no_dist=parallel.world == 1)
        parallel.from_first(lambda: _finish(temporary, final, {"step": step} | facts))
    if parallel.first:
        for old in saved_steps(directory)[:-keep]:
            shutil.rmtree(directory / FOLDER / f"step-{old:08d}", ignore_errors=True)


def _make_empty(temporary: Path) -> None:
    """A new folder; what a killed process left behind goes."""
    for stale in temporary.parent.glob(".step-*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    temporary.mkdir(parents=True)


def _finish(temporary: Path, final: Path, facts: dict[str, Any]) -> None:
    """Add `run.json` and give the folder its name."""
    facts = facts | {_HASHES: {path.name: _sha256(path) for path in sorted(temporary.iterdir())}}
    with (temporary / FACTS_FILE).open("w", encoding="utf-8") as file:
        file.write(json.dumps(facts, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())  # PyTorch does so with its files; the name must not outlive the content
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _alone(parallel: Parallel) -> Iterator[None]:
    """PyTorch warns that one process is alone, even where `no_dist` says so."""
    with warnings.catch_warnings():
        if parallel.world == 1:
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


@contextmanager
def _disk_errors(final: Path, temporary: Path, parallel: Parallel) -> Iterator[None]:
    try:
        yield
    except (OSError, CheckpointException, RuntimeError) as error:
        if parallel.first:
            shutil.rmtree(temporary, ignore_errors=True)
        if is_lost_peer(error):
            raise
        reason = " ".join(str(error).split())[-300:]
        raise ResourceError(
            f"{final}: cannot be written ({reason}); free disk space, then --resume goes on from the last "
            "checkpoint"
        ) from None


def saved_steps(directory: Path) -> list[int]:
    """The steps whose checkpoints are whole, rising."""
    folders = (directory / FOLDER).glob("step-*")
    return sorted(int(path.name[5:]) for path in folders if path.name[5:].isdecimal())


def load_state(
    directory: Path,
    model: Transformer,
    optimizer: torch.optim.AdamW,
    parallel: Parallel,
) -> dict[str, Any]:
    """Fill model and optimiser from the newest checkpoint; returns `run.json`, whose `step` is done.

    Raises:
        FormatError: there is none, or it is damaged or of another model.
    """
    steps = saved_steps(directory)
    if not steps:
        raise FormatError(f"{directory / FOLDER}: holds no checkpoint; there is nothing to resume")
    path = directory / FOLDER / f"step-{steps[-1]:08d}"
    facts = read_json_object(path / FACTS_FILE)
    if facts.get("step") != steps[-1]:
        raise FormatError(f"{path / FACTS_FILE}: step is {facts.get('step')!r}, not {steps[-1]}")
    older = f"; remove it to {f'go on from step {steps[-2]}' if len(steps) > 1 else 'begin the run again'}"
    if damage := parallel.from_first(lambda: _damage(path, facts)):
        raise FormatError(f"{path}: is damaged: {damage}{older}")
    weights, moments = get_state_dict(model, optimizer)
    state = {"model": weights, "optimizer": moments}
    try:
        with _alone(parallel):
            load(state, checkpoint_id=path, no_dist=parallel.world == 1)
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments)
    # a damaged file fails in the unpickler, in zip or in the planner, each with exceptions of its own
    except (CheckpointException, Exception) as error:
        if isinstance(error, MemoryError) or is_lost_peer(error):
            raise
        reason = " ".join(str(error).split())[-300:]
        raise FormatError(f"{path}: damaged, or of another model ({reason}){older}") from None
    return facts


def _damage(path: Path, facts: dict[str, Any]) -> str | None:
    """What distinguishes a checkpoint's files from those that were saved."""
    hashes = facts.get(_HASHES)
    if not isinstance(hashes, dict) or not hashes:
        return f"{FACTS_FILE} holds no {_HASHES} of the other files"
    for name, expected in hashes.items():
        try:
            found = _sha256(path / Path(name).name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
        if found != expected:
            return f"the sha256 of {name} is {found}, {FACTS_FILE} says {expected}"
    return None
