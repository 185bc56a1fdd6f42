"""Everything a run says and writes besides its state: rows, curves, lines, evaluations.

Every process calls every method. The first one writes; what goes wrong there is raised on all of them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from torch import Tensor

from bitnet.config import ModelConfig
from bitnet.nn import Transformer
from bitnet.train.config import TrainingConfig
from bitnet.train.export import computed_config, whole_tensors
from bitnet.train.heldout import HeldOut, bits_per_byte, packed_bits_per_byte, packed_model
from bitnet.train.parallel import Parallel
from bitnet.train.plots import plot_run
from bitnet.train.progress import ProgressReport
from bitnet.train.record import Record
from bitnet.train.schedule import Values
from bitnet.train.sinks import Sink, TensorBoard, WeightsAndBiases
from bitnet.train.step import StepResult, multiplies_in_bfloat16
from bitnet.train.throughput import flops_per_token, peak_flops

_COLUMNS = (
    "step",
    "tokens",
    "loss",
    "learning_rate",
    "weight_decay",
    "quantizer_strength",
    "gradient_norm",
    "skipped_steps",
    "tokens_per_second",
    "mfu",
)


class Reporting:
    """A context: opened before the first step; at its end bars vanish and pictures are drawn."""

    def __init__(
        self, directory: Path, config: TrainingConfig, heldout: Sequence[HeldOut], parallel: Parallel
    ) -> None:
        self._directory, self._config, self._parallel = directory, config, parallel
        self._texts = heldout
        self._packed = config.report.evaluate_packed and config.schedule.quantized
        self._progress = ProgressReport(quiet=not parallel.first)
        self._record: Record | None = None
        self._sinks: list[Sink] = []
        self._interval = _Interval()
        self._tokens_per_step = config.data.tokens_per_step
        self._last_step = 0
        self._flops = flops_per_token(config.model, config.data.sequence_length)
        self._peak = float("nan")

    def __enter__(self) -> Reporting:
        return self

    def start(self, step: int, steps: int, notices: Sequence[str]) -> None:
        """Before the first step; `step` are done already, and what was recorded behind it is dropped.

        Raises:
            FormatError: the record of the interrupted run is damaged.
            ResourceError: a package of a sink is not installed, or the disk is full.
        """
        self._last_step = steps
        self._peak = self._parallel.world * peak_flops(
            self._parallel.device, multiplies_in_bfloat16(self._config.compute, self._parallel.device)
        )
        self._parallel.from_first(lambda: self._open(step))
        self._progress.start(step, steps)
        for text in notices:
            self.notice(text)
        self._interval = _Interval()

    def _open(self, step: int) -> None:
        """The record and the sinks of the first process."""
        report = self._config.report
        names = [text.name for text in self._texts]
        columns = [*_COLUMNS, *(f"heldout:{name}" for name in names)]
        if self._packed:
            columns += [f"packed:{name}" for name in names]
        self._record = Record(self._directory, columns, step)
        if report.tensorboard:
            self._sinks.append(TensorBoard(self._directory, step))
        if report.wandb is not None:
            rows, config = self._record.rows(), self._config.to_dict()
            self._sinks.append(WeightsAndBiases(self._directory, report.wandb, config, rows))

    def step(self, step: int, result: StepResult, values: Values, skipped: int, model: Transformer) -> None:
        """After each step: shows it, and at intervals evaluates and writes a row."""
        interval, report = self._interval, self._config.report
        interval.add(result)
        self._progress.step(step, result.loss, interval.steps * self._tokens_per_step / interval.seconds())
        last = step == self._last_step
        evaluate = last or step % report.evaluate_every == 0
        if not (evaluate or step % report.log_every == 0):
            return
        row = self._row(step, values, skipped)
        results = self._evaluate(model, values.low_bit) if evaluate else {}
        self._progress.evaluation(step, results)
        self._parallel.from_first(lambda: self._write(step, row | results))
        self._interval = _Interval()

    def _write(self, step: int, row: Mapping[str, float]) -> None:
        if self._record is not None:
            self._record.add(row)
        for sink in self._sinks:
            sink.add(step, row)

    def codes(self, step: int, layers: Mapping[str, tuple[float, float]]) -> None:
        """Zero fraction and flip rate of every layer."""
        record = self._record
        self._parallel.from_first(lambda: record.add_codes(step, layers) if record is not None else None)

    def notice(self, text: str) -> None:
        """A line that must be seen."""
        self._progress.notice(text)

    def _row(self, step: int, values: Values, skipped: int) -> dict[str, float]:
        """The numbers of the interval that ends with the step just done."""
        interval = self._interval
        speed = interval.steps * self._tokens_per_step / interval.seconds()
        return {
            "step": step,
            "tokens": step * self._tokens_per_step,
            "loss": interval.loss,
            "learning_rate": values.learning_rate,
            "weight_decay": values.weight_decay,
            "quantizer_strength": values.quantizer_strength,
            "gradient_norm": interval.norm,
            "skipped_steps": skipped,
            "tokens_per_second": speed,
            "mfu": speed * self._flops / self._peak,
        }

    def _evaluate(self, model: Transformer, low_bit: bool) -> dict[str, float]:
        """Bits per byte of every text, of the model in training and of its packed form."""
        length = self._config.data.sequence_length
        results = {f"heldout:{text.name}": bits_per_byte(model, text, length) for text in self._texts}
        if self._packed and self._texts:
            tensors, config = whole_tensors(model), computed_config(self._config.model, low_bit)
            results |= self._parallel.from_first(lambda: self._evaluate_packed(tensors, config, length))
        return results

    def _evaluate_packed(
        self, tensors: Mapping[str, Tensor], config: ModelConfig, length: int
    ) -> dict[str, float]:
        packed = packed_model(tensors, config)
        return {f"packed:{text.name}": packed_bits_per_byte(packed, text, length) for text in self._texts}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.close()
        ends = [sink.close for sink in self._sinks]
        if self._record is not None:
            ends.append(lambda: plot_run(self._directory))
        for end in ends:
            try:
                end()
            except OSError as problem:  # the run is saved, and its own error must stay the one that is seen
                self.notice(f"{self._directory}: the report is not whole ({problem})")


class _Interval:
    """What happened since the last row of the record; loss and norm are means over the steps taken."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self.steps = 0
        self._losses: list[float] = []
        self._norms: list[float] = []

    def add(self, result: StepResult) -> None:
        self.steps += 1
        if result.taken:  # a skipped step's NaN would hide all others
            self._losses.append(result.loss)
            self._norms.append(result.norm)

    @property
    def loss(self) -> float:
        return _mean(self._losses)

    @property
    def norm(self) -> float:
        return _mean(self._norms)

    def seconds(self) -> float:
        return time.perf_counter() - self._started


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
