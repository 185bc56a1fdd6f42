"""Rows are whole, survive a resume, and nothing that was recorded is lost or made up."""

import csv
import json
import math

import pytest

from bitnet.errors import FormatError, ResourceError
from bitnet.train.record import CODES, LINES, METRICS, Record, read_rows

COLUMNS = ("step", "tokens", "loss", "heldout:story")


def filled(folder, steps, columns=COLUMNS):
    record = Record(folder, columns, 0)
    for step in steps:
        record.add({"step": step, "tokens": 100 * step, "loss": 1 / step})
        record.add_codes(step, {"a.q_proj": (0.25, math.nan), "a.k_proj": (1 / 3, 0.125)})
    return record


def lines(folder):
    return [json.loads(line) for line in (folder / LINES).read_text().splitlines()]


def test_a_row_comes_back_as_it_was(tmp_path):
    record = filled(tmp_path, [3])
    record.add({"step": 4, "tokens": 2**40, "loss": 0.123456789, "heldout:story": 1.5})
    assert read_rows(tmp_path / METRICS) == [
        {"step": "3", "tokens": "300", "loss": "0.333333", "heldout:story": ""},
        {"step": "4", "tokens": "1099511627776", "loss": "0.123457", "heldout:story": "1.5"},
    ]
    assert lines(tmp_path)[0] == {"step": 3, "tokens": 300, "loss": 1 / 3}
    assert lines(tmp_path)[1]["loss"] == 0.123456789
    assert read_rows(tmp_path / CODES) == [
        {"step": "3", "layer": "a.q_proj", "zero_fraction": "0.25", "flip_rate": ""},
        {"step": "3", "layer": "a.k_proj", "zero_fraction": "0.333333", "flip_rate": "0.125"},
    ]


def test_rows_are_what_a_row_held(tmp_path):
    record = filled(tmp_path, [2])
    record.add({"step": 3, "tokens": 3, "loss": math.nan})
    (tmp_path / LINES).write_bytes((tmp_path / LINES).read_bytes() + b'{"step": 4, "to')
    assert record.rows() == [{"step": 2, "tokens": 200, "loss": 0.5}, {"step": 3, "tokens": 3}]


def test_what_is_no_number_stays_readable(tmp_path):
    record = Record(tmp_path, COLUMNS, 0)
    record.add({"step": 1, "tokens": 1, "loss": math.nan, "heldout:story": math.inf})
    (row,) = read_rows(tmp_path / METRICS)
    assert math.isnan(float(row["loss"]))
    assert float(row["heldout:story"]) == math.inf
    text = (tmp_path / LINES).read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 1,
        "tokens": 1,
        "loss": None,
        "heldout:story": None,
    }


@pytest.mark.parametrize("step", [0, 3, 4, 5, 99])
def test_a_resume_drops_the_rows_behind_its_step(tmp_path, step):
    filled(tmp_path, [2, 4, 6])
    record = Record(tmp_path, COLUMNS, step)
    kept = [number for number in (2, 4, 6) if number <= step]
    assert [int(row["step"]) for row in read_rows(tmp_path / METRICS)] == kept
    assert [row["step"] for row in lines(tmp_path)] == kept
    assert [int(row["step"]) for row in read_rows(tmp_path / CODES)] == [s for s in kept for _ in range(2)]
    record.add({"step": step + 1, "tokens": 7})
    assert int(read_rows(tmp_path / METRICS)[-1]["step"]) == lines(tmp_path)[-1]["step"] == step + 1
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("file", [METRICS, LINES, CODES])
def test_a_line_torn_anywhere_is_dropped(tmp_path, file):
    filled(tmp_path, [1, 2])
    whole = (tmp_path / file).read_bytes()
    begin = whole[:-1].rfind(b"\n") + 1
    for end in range(begin, len(whole)):
        (tmp_path / file).write_bytes(whole[:end])
        if file != LINES:
            assert read_rows(tmp_path / file) == list(csv.DictReader(whole[:begin].decode().splitlines()))
        Record(tmp_path, COLUMNS, 9)
        assert (tmp_path / file).read_bytes() == whole[:begin], end


def test_a_process_killed_at_its_header_leaves_an_empty_record(tmp_path):
    (tmp_path / METRICS).write_text("step,tok")
    Record(tmp_path, COLUMNS, 0)
    assert (tmp_path / METRICS).read_text() == "step,tokens,loss,heldout:story\n"


def test_columns_that_change_keep_old_values(tmp_path):
    record = filled(tmp_path, [1], ("step", "tokens", "loss", "heldout:old"))
    record.add({"step": 2, "tokens": 2, "heldout:old": 1.25})
    record = Record(tmp_path, ("step", "tokens", "heldout:new", "loss"), 2)
    record.add({"step": 3, "tokens": 3, "heldout:new": 0.75})
    rows = read_rows(tmp_path / METRICS)
    assert list(rows[0]) == ["step", "tokens", "heldout:new", "loss", "heldout:old"]
    assert [row["heldout:old"] for row in rows] == ["", "1.25", ""]
    assert [row["heldout:new"] for row in rows] == ["", "", "0.75"]
    assert rows[0]["loss"] == "1"
    Record(tmp_path, COLUMNS, 3)
    assert [row["heldout:new"] for row in read_rows(tmp_path / METRICS)] == ["", "", "0.75"]


def test_a_name_may_hold_what_separates(tmp_path):
    name = 'heldout:a,"b"\u2028c'
    for step in (1, 2):
        record = Record(tmp_path, ("step", name), step - 1)
        record.add({"step": step, name: 0.5})
    assert read_rows(tmp_path / METRICS) == [{"step": "1", name: "0.5"}, {"step": "2", name: "0.5"}]
    assert lines(tmp_path)[1] == {"step": 2, name: 0.5}


DAMAGES = [
    (METRICS, b"step,tokens,loss,heldout:story\n1,2\n", 2),
    (METRICS, b"step,tokens,loss,heldout:story\n1,2,3,4\n1,2,3,4,5\n", 3),
    (METRICS, b"step,tokens,loss,heldout:story\nten,2,3,4\n", 2),
    (METRICS, b"step,tokens,loss,heldout:story\n-1,2,3,4\n", 2),
    (METRICS, b"tokens,loss\n1,2\n", 2),
    (METRICS, b"step,tokens\n1,2\n\xff\xfe,2\n", 3),
    (METRICS, b"step,tokens\n1," + b"9" * 200_000 + b"\n", 2),
    (CODES, b"step,layer,zero_fraction,flip_rate\n\0\0\0\0\n", 2),
    (LINES, b'{"step": 1}\n{"step": \n', 2),
    (LINES, b"[1]\n", 1),
    (LINES, b'{"tokens": 1}\n', 1),
    (LINES, b'{"step": null}\n', 1),
    (LINES, b'{"step": true}\n', 1),
    (LINES, b"[" * 100_000 + b"\n", 1),
]


@pytest.mark.parametrize(("file", "content", "line"), DAMAGES)
def test_damage_inside_is_refused_by_line_and_changes_nothing(tmp_path, file, content, line):
    filled(tmp_path, [1])
    (tmp_path / file).write_bytes(content)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(FormatError, match=rf"{file}: line {line} is damaged"):
        Record(tmp_path, COLUMNS, 1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_record_that_cannot_be_written_is_the_machines_fault(tmp_path):
    record = filled(tmp_path, [1])
    (tmp_path / LINES).unlink()
    (tmp_path / LINES).mkdir()
    with pytest.raises(ResourceError, match=r"metrics\.jsonl: cannot be written.*--resume"):
        record.add({"step": 2})
    with pytest.raises(ResourceError, match="cannot be written"):
        Record(tmp_path / "nowhere", COLUMNS, 0)


def test_no_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / METRICS) == []
