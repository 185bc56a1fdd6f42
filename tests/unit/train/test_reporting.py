"""Rows hold honest means, evaluations come when they should, and a report never hides a run's own error."""

import math
import sys
from dataclasses import dataclass

import pytest
import torch

from bitnet.errors import DivergedError, FormatError, ResourceError
from bitnet.nn import Transformer
from bitnet.train import reporting
from bitnet.train.config import TrainingConfig
from bitnet.train.heldout import open_texts
from bitnet.train.parallel import Parallel
from bitnet.train.record import METRICS, read_rows
from bitnet.train.reporting import Reporting
from bitnet.train.schedule import Values
from bitnet.train.step import StepResult

VALUES = Values(1e-3, 0.1, 0.5, 8, True)
GOOD, BAD = StepResult(2.0, 1.0, True, False), StepResult(math.nan, math.inf, False, False)


@pytest.fixture
def report(tmp_path, values, tokenizer, monkeypatch):
    """A report of six steps, evaluated every three, without pictures."""
    monkeypatch.setattr(reporting, "plot_run", lambda directory: None)
    monkeypatch.setattr(reporting, "peak_flops", lambda device, bfloat16: math.nan)
    values["report"] = {"log_every": 2, "evaluate_every": 3, "evaluate_packed": False}

    def build(parallel=None, **changes) -> Reporting:
        values["report"] |= changes
        config = TrainingConfig.from_dict(values)
        heldout = open_texts(config.data.heldout, tokenizer)
        return Reporting(tmp_path, config, heldout, parallel or Parallel())

    return build


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return Transformer(config.model)


class Sink:
    def __init__(self, close=None):
        self.rows, self.closed, self._close = [], False, close

    def add(self, step, row):
        self.rows.append((step, row))

    def close(self):
        self.closed = True
        if self._close:
            raise self._close


def test_rows_and_evaluations_come_when_they_are_due(tmp_path, report, model):
    sink = Sink()
    with report() as opened:
        opened.start(0, 5, [])
        opened._sinks.append(sink)
        for step in range(1, 6):
            opened.step(step, StepResult(float(step), 10.0 * step, True, False), VALUES, 0, model)
    rows = read_rows(tmp_path / METRICS)
    assert [int(row["step"]) for row in rows] == [2, 3, 4, 5]
    assert [float(row["loss"]) for row in rows] == [1.5, 3.0, 4.0, 5.0]
    assert [float(row["gradient_norm"]) for row in rows] == [15.0, 30.0, 40.0, 50.0]
    assert [int(row["tokens"]) for row in rows] == [256, 384, 512, 640]
    assert [bool(row["heldout:story"]) for row in rows] == [False, True, False, True]
    assert {row["quantizer_strength"] for row in rows} == {"0.5"}
    assert {row["mfu"] for row in rows} == {"nan"}
    assert [step for step, _ in sink.rows] == [2, 3, 4, 5]
    for row, (_, sent) in zip(rows, sink.rows, strict=True):
        assert {name: f"{value:.6g}" for name, value in sent.items()} == {k: v for k, v in row.items() if v}


def test_a_skipped_step_does_not_hide_the_others(tmp_path, report, model):
    with report(evaluate_every=100) as opened:
        opened.start(0, 100, [])
        for step, result in enumerate((GOOD, BAD, BAD, BAD), 1):
            opened.step(step, result, VALUES, min(step - 1, 3), model)
    first, second = read_rows(tmp_path / METRICS)
    assert (first["loss"], first["gradient_norm"], first["skipped_steps"]) == ("2", "1", "1")
    assert (second["loss"], second["gradient_norm"], second["skipped_steps"]) == ("nan", "nan", "3")


def test_evaluations_do_not_count_as_training_time(tmp_path, report, model, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(reporting.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(reporting, "peak_flops", lambda device, bfloat16: 1e9)

    def slow(*arguments):
        now[0] += 1000
        return 1.0

    monkeypatch.setattr(reporting, "bits_per_byte", slow)
    with report(log_every=1, evaluate_every=1) as opened:
        opened.start(0, 3, [])
        for step in (1, 2, 3):
            now[0] += 2
            opened.step(step, GOOD, VALUES, 0, model)
    rows = read_rows(tmp_path / METRICS)
    assert [float(row["tokens_per_second"]) for row in rows] == [64.0] * 3  # 4 windows of 32 in 2 s
    assert float(rows[0]["mfu"]) == pytest.approx(64 * opened._flops / 1e9, rel=1e-5)


def test_other_texts_after_a_resume_leave_the_old_results(tmp_path, report, model, values, story_file):
    with report(evaluate_every=1) as opened:
        opened.start(0, 9, [])
        for step in (1, 2):
            opened.step(step, GOOD, VALUES, 0, model)
    (tmp_path / "tale.txt").write_text(story_file.read_text()[:500])
    values["data"]["heldout"] = [str(tmp_path / "tale.txt")]
    with report() as opened:
        opened.start(1, 9, ["the texts are others"])
        opened.step(2, GOOD, VALUES, 0, model)
    first, second = read_rows(tmp_path / METRICS)
    assert first["heldout:story"]
    assert not first["heldout:tale"]
    assert second["heldout:tale"]
    assert not second["heldout:story"]


@pytest.mark.parametrize("quantized", [True, False])
def test_only_a_quantised_run_has_a_packed_model(tmp_path, report, model, values, quantized):
    values["schedule"]["quantized"] = quantized
    with report(evaluate_packed=True) as opened:
        opened.start(5, 6, [])
        opened.step(6, GOOD, VALUES, 0, model)
    (row,) = read_rows(tmp_path / METRICS)
    assert ("packed:story" in row) == quantized
    if quantized:
        assert float(row["packed:story"]) == pytest.approx(float(row["heldout:story"]), rel=5e-3)


def test_a_report_that_fails_at_its_end_hides_no_error_of_the_run(report, monkeypatch, capsys):
    def full(directory):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reporting, "plot_run", full)
    last = Sink()

    def fail(opened):
        opened.start(0, 6, [])
        opened._sinks += [Sink(ResourceError("the network is gone")), last]
        raise DivergedError("three in a row")

    with pytest.raises(DivergedError), report() as opened:
        fail(opened)
    assert last.closed
    shown = capsys.readouterr().err
    assert "the network is gone" in shown
    assert "No space left" in shown


def test_a_missing_sink_ends_the_run_before_its_first_step(report, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ResourceError, match=r"report\.tensorboard"), report(tensorboard=True) as opened:
        opened.start(0, 6, [])


def test_tensorboard_sees_every_step_of_a_resumed_run_once(tmp_path, report, model):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for begin, loss in ((0, 3.0), (2, 1.0)):
        with report(tensorboard=True) as opened:
            opened.start(begin, 6, [])
            for step in range(begin + 1, 6):
                opened.step(step, StepResult(loss, 1.0, True, False), VALUES, 0, model)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [
        (2, 3.0),
        (3, 1.0),
        (4, 1.0),
    ]
    assert [event.step for event in events.Scalars("heldout/story")] == [3]


@dataclass(frozen=True)
class Second(Parallel):
    """The second process of two, where the first does well or fails."""

    rank: int = 1
    fault: Exception | None = None

    def from_first(self, work):
        if self.fault:
            raise self.fault


def test_only_the_first_process_writes(tmp_path, report, model, capsys):
    with report(Second(), tensorboard=True) as opened:
        opened.start(0, 6, ["unheard"])
        for step in (1, 2, 3):
            opened.step(step, GOOD, VALUES, 0, model)
        opened.codes(3, {"a": (0.5, 0.5)})
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().err == ""


def test_a_damaged_record_ends_every_process(report):
    with pytest.raises(FormatError, match="line 7"), report(Second(fault=FormatError("line 7"))) as opened:
        opened.start(0, 6, [])
