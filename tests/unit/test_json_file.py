import os

import pytest

from bitnet.errors import FormatError
from bitnet.json_file import parse_json_object, read_json_object


def test_object(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, {"b": null}], "ü": 2.5}', encoding="utf-8")
    assert read_json_object(tmp_path / "a.json") == {"a": [1, {"b": None}], "ü": 2.5}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not readable as JSON"),
        (b"{", "not readable as JSON"),
        (b'{"a": "\xff"}', "not readable as JSON"),
        (b'{"a": ' + b"[" * 200_000, "not readable as JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not readable as JSON"),
        (b"[]", "holds a list, expected a JSON object"),
        (b"null", "holds a NoneType"),
        (b'{"a": 1, "a": 1}', "the key 'a' stands there twice"),
        (b'{"b": {"a": 1, "a": 2}}', "the key 'a' stands there twice"),
    ],
)
def test_everything_else(text, message):
    with pytest.raises(FormatError, match=rf"^here: .*{message}|^here: {message}"):
        parse_json_object(text, "here")


def test_missing_file(tmp_path):
    with pytest.raises(FormatError, match=r"a\.json: not found"):
        read_json_object(tmp_path / "a.json")


def test_folder_in_its_place(tmp_path):
    with pytest.raises(FormatError, match="cannot be read"):
        read_json_object(tmp_path)


def test_pipe_in_its_place(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="not a file"):
        read_json_object(tmp_path / "pipe")


def test_too_large(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 33)
    with pytest.raises(FormatError, match="larger than"):
        read_json_object(tmp_path / "a.json")
