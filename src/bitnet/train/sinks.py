"""Where metrics go besides the run's folder, if asked for: TensorBoard, Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from bitnet.errors import ResourceError


class Sink(Protocol):
    """Takes the rows that metrics.csv takes."""

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """The values after optimiser step `step`."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in DIRECTORY/tensorboard.

    Raises:
        ResourceError: the package is not installed.
    """

    def __init__(self, directory: Path) -> None:
        _require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(directory / "tensorboard"))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            if name not in ("step", "tokens"):
                self._writer.add_scalar(name.replace(":", "/"), value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of a W&B project; a resumed run continues the same one.

    Raises:
        ResourceError: the package is not installed.
    """

    def __init__(self, directory: Path, project: str, config: Mapping[str, Any]) -> None:
        _require("wandb", "wandb")
        import wandb

        self._run = wandb.init(
            project=project,
            dir=str(directory),
            id=directory.resolve().name,
            resume="allow",
            config=dict(config),
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _require(package: str, extra: str) -> None:
    if find_spec(package) is None:
        raise ResourceError(
            f"report.{extra} needs {package}; pip install 'bitnet-ternary[{extra}]' brings it"
        )
