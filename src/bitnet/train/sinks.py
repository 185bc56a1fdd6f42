"""Where metrics go besides the run's folder, if asked for: TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

from bitnet.errors import FormatError, ResourceError
from bitnet.json_file import read_json_object

_WANDB_STATE = "wandb-run.json"


class Sink(Protocol):
    """Takes the rows that metrics.csv takes."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """The values after optimiser step `step`."""

    def close(self) -> None:
        """Write what is left."""


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
    """A run of a W&B project; a resumed run continues the same one.

    W&B takes no step twice. DIRECTORY/wandb-run.json holds the run's id, its project and the last step that
    was sent; steps which a resumed run repeats are not sent again.

    Raises:
        ResourceError: the package is not installed, or W&B refuses the run.
        FormatError: wandb-run.json is damaged.
    """

    def __init__(self, directory: Path, project: str, config: Mapping[str, Any]) -> None:
        _require("wandb", "wandb")
        import wandb

        self._state = directory / _WANDB_STATE
        state = read_json_object(self._state) if self._state.exists() else {}
        if state.get("project") != project:
            state = {"id": uuid4().hex, "project": project, "step": 0}
        identity, last = state.get("id"), state.get("step")
        if not isinstance(identity, str) or type(last) is not int:
            raise FormatError(
                f"{self._state}: holds no id and step of a W&B run; remove it to go on as a new run there"
            )
        self._id, self._project, self._last = identity, project, last
        try:
            self._run = wandb.init(
                project=project,
                dir=str(directory),
                id=self._id,
                name=directory.resolve().name,
                resume="allow",
                config=dict(config),
            )
        except wandb.Error as error:
            raise ResourceError(
                f"report.wandb: W&B cannot start a run in project {project!r} ({error}); `wandb login`, or "
                "set WANDB_MODE=offline to keep it in the run's folder"
            ) from None

    def add(self, step: int, values: Mapping[str, float]) -> None:
        if step <= self._last:
            return
        self._run.log(dict(values), step=step)
        self._last = step
        temporary = self._state.with_suffix(".tmp")
        temporary.write_text(
            json.dumps({"id": self._id, "project": self._project, "step": step}) + "\n", encoding="utf-8"
        )
        os.replace(temporary, self._state)

    def close(self) -> None:
        self._run.finish()


def _require(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise ResourceError(
            f"report.{extra} needs {package}; pip install 'bitnet-ternary[{extra}]' brings it"
        )
