"""Where metrics go besides the run's folder, if asked for: TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from bitnet.errors import FormatError, ResourceError
from bitnet.json_file import read_json_object
from bitnet.train.config import ReportConfig

_WANDB_STATE = "wandb-run.json"


class Sink(Protocol):
    """Takes the rows that metrics.csv takes."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """The values after optimiser step `step`."""

    def close(self) -> None:
        """Write what is left."""


def check_packages(report: ReportConfig) -> None:
    """Raises ResourceError: a sink that is asked for needs a package that is not installed."""
    if report.tensorboard:
        _require("tensorboard", "tensorboard")
    if report.wandb is not None:
        _require("wandb", "wandb")


class TensorBoard:
    """Event files in DIRECTORY/tensorboard.

    Args:
        step: the run goes on from it; TensorBoard hides what an interrupted run wrote behind it.
    Raises:
        ResourceError: the package is not installed.
    """

    def __init__(self, directory: Path, step: int) -> None:
        _require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard"), purge_step=step + 1)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name not in ("step", "tokens"):
                self._writer.add_scalar(name.replace(":", "/"), value, step)
        self._writer.flush()  # by itself it waits two minutes, and a checkpoint may come between

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of a W&B project; a resumed run continues the same one, whose id DIRECTORY/wandb-run.json holds.

    W&B takes no step twice, so steps it has already are not sent again. What was logged shortly before a
    process was killed never arrived (offline: nothing did), so a resumed run sends the recorded rows first.

    Args:
        rows: of the record, from the first step on.
    Raises:
        ResourceError: the package is not installed, or W&B refuses the run.
        FormatError: wandb-run.json is damaged.
    """

    def __init__(
        self,
        directory: Path,
        project: str,
        config: Mapping[str, Any],
        rows: Iterable[Mapping[str, float]],
    ) -> None:
        _require("wandb", "wandb")
        import wandb

        try:
            self._run = wandb.init(
                project=project,
                dir=str(directory),
                id=_run_id(directory / _WANDB_STATE, project),
                name=directory.resolve().name,
                resume="allow",
                config=dict(config),
            )
        except wandb.Error as error:
            raise ResourceError(
                f"report.wandb: W&B cannot start a run in project {project!r} ({error}); `wandb login`, or "
                "set WANDB_MODE=offline to keep it in the run's folder"
            ) from None
        for row in rows:
            self.add(int(row["step"]), row)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._run.step:
            self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _run_id(path: Path, project: str) -> str:
    """The id of this folder's run in a project, a new one at first; names of folders are not unique."""
    state = read_json_object(path) if path.exists() else {}
    if state.get("project") != project:
        state = {"id": uuid4().hex, "project": project}
        path.write_text(json.dumps(state) + "\n", encoding="utf-8")
    identity = state.get("id")
    if not isinstance(identity, str):
        raise FormatError(f"{path}: holds no id of a W&B run; remove it to go on as a new run there")
    return identity


def _require(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise ResourceError(
            f"report.{extra} needs {package}; pip install 'bitnet-ternary[{extra}]' brings it"
        )
