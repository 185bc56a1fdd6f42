"""A log has a line a minute with an honest ETA, a terminal a bar; both say what must be seen."""

import pytest

from bitnet.train import progress
from bitnet.train.progress import ProgressReport


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def log(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


def test_a_log_gets_a_line_a_minute(clock, log, capsys):
    report = ProgressReport(quiet=False)
    report.start(100, 200)
    clock[0] += 6
    report.step(101, 2.5, 1234.5)
    for step in range(102, 122):
        clock[0] += 6
        report.step(step, 2.25, 999.6)
    report.close()
    assert capsys.readouterr().err.splitlines() == [
        "step 101/200  loss 2.500  1,234 tokens/s  ETA 0:09:54",
        "step 111/200  loss 2.250  1,000 tokens/s  ETA 0:08:54",
        "step 121/200  loss 2.250  1,000 tokens/s  ETA 0:07:54",
    ]


def test_a_loss_that_is_no_number_is_shown(clock, log, capsys):
    report = ProgressReport(quiet=False)
    report.start(0, 3)
    report.step(1, float("nan"), 0.0)
    assert "loss nan" in capsys.readouterr().err


def test_evaluations_and_notices_are_printed_as_they_are(log, capsys):
    report = ProgressReport(quiet=False)
    report.start(0, 3)
    report.evaluation(2, {"heldout:[bold]a": 1.23456, "packed:[bold]a": 1.25})
    report.evaluation(3, {})
    report.notice("step 3 skipped: [red] " + "very long " * 30)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "step 2: heldout:[bold]a 1.2346  packed:[bold]a 1.2500 bits per byte"
    assert second == "step 3 skipped: [red] " + "very long " * 30


def test_a_terminal_gets_a_bar_that_goes_away(monkeypatch, capsys):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    report = ProgressReport(quiet=False)
    report.start(10, 20)
    report.step(15, 1.5, 2000.0)
    report.notice("seen")
    report.close()
    report.notice("still seen")
    shown = capsys.readouterr().err
    assert "10/20" in shown
    assert "15/20" in shown
    assert "loss 1.500  2,000 tokens/s" in shown
    assert "ETA" in shown
    assert "seen\n" in shown
    assert shown.endswith("still seen\n")
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is back


@pytest.mark.parametrize("terminal", ["0", "1"])
def test_other_processes_say_nothing(monkeypatch, capsys, terminal):
    monkeypatch.setenv("TTY_COMPATIBLE", terminal)
    report = ProgressReport(quiet=True)
    report.start(0, 2)
    report.step(1, 1.0, 1.0)
    report.evaluation(1, {"heldout:a": 1.0})
    report.notice("nothing")
    report.close()
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "")
