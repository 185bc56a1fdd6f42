"""Evaluation files: every container, and every way a file or row can be wrong."""

import bz2
import gzip
import json
import lzma
import zipfile

import pytest

from bitnet.errors import FormatError
from bitnet.evaluate import rows
from bitnet.evaluate.rows import Row, read_rows, read_text

LINES = b'{"a": "x"}\n\n{"a": "\xc3\xa9"}\r\n{"a": "last"}'


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)],
)
def test_compressed_or_not(tmp_path, suffix, pack):
    path = tmp_path / f"f.jsonl{suffix}"
    path.write_bytes(pack(LINES))
    (found,) = read_rows(path)
    assert [row.text("a") for row in found] == ["x", "é", "last"]
    assert [row.where for row in found] == [f"{path}: line {n}" for n in (1, 3, 4)]
    assert read_text(path) == LINES.decode()


def test_members_of_a_zip(tmp_path):
    path = tmp_path / "f.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/b.jsonl", LINES)
        archive.writestr("data/a.jsonl", b'{"a": "first"}')
        archive.writestr("__MACOSX/data/._a.jsonl", b"\0\5")
        archive.writestr("data/notes.txt", b"no rows")
    first, second = read_rows(path)
    assert [row.text("a") for row in first] == ["first"]
    assert second[1].where == f"{path}: data/b.jsonl: line 3"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("f.jsonl", b"", "f.jsonl: holds no rows"),
        ("f.jsonl", b"\n \n", "holds no rows"),
        ("f.jsonl", b'{"a": 1}\n{"a": ', "f.jsonl: line 2: not readable as JSON"),
        ("f.jsonl", b"[1]", "f.jsonl: line 1: holds a list, expected a JSON object"),
        ("f.jsonl", b'{"a": "\xff"}', "line 1: not readable as JSON"),
        ("f.jsonl", b"[" * 100_000, "line 1: not readable as JSON"),
        ("f.jsonl", b'{"a": 1, "a": 2}', "line 1: the key 'a' stands there twice"),
        ("f.jsonl.gz", b"no gzip", "f.jsonl.gz: cannot be read"),
        ("f.jsonl.gz", gzip.compress(LINES)[:-9], "f.jsonl.gz: cannot be read"),
        ("f.jsonl.xz", lzma.compress(LINES)[:-9], "f.jsonl.xz: cannot be read"),
        ("f.jsonl.bz2", b"BZh9xxxx", "f.jsonl.bz2: cannot be read"),
        ("f.zip", b"PK\3\4", "f.zip: cannot be read"),
        ("f.zip", b"PK\5\6" + bytes(18), "f.zip: holds no file that ends in"),
    ],
)
def test_damaged_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FormatError, match=message):
        list(read_rows(tmp_path / name))


def test_files_that_are_none(tmp_path):
    with pytest.raises(FormatError, match="gone: not found"):
        list(read_rows(tmp_path / "gone"))
    with pytest.raises(FormatError, match="not a file"):
        read_text(tmp_path)
    (tmp_path / "latin").write_bytes("für".encode("latin-1"))
    with pytest.raises(FormatError, match="latin: not UTF-8 at byte 1"):
        read_text(tmp_path / "latin")


def test_what_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "_LARGEST", 1000)
    (tmp_path / "bomb.jsonl.gz").write_bytes(gzip.compress(b" " * 1001))
    with pytest.raises(FormatError, match=r"larger than 1,000 bytes"):
        list(read_rows(tmp_path / "bomb.jsonl.gz"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "k is missing, expected a string"),
        (3, "k is 3, expected a string"),
        ("", "k is empty"),
        ([["x" * 90]], r"k is a list of \[\['xxx"),
        ("a\ud800", "k holds half a surrogate pair"),
    ],
)
def test_not_a_text(value, message):
    with pytest.raises(FormatError, match=f"here: line 7: {message}"):
        Row("here: line 7", {"k": value}).text("k")


@pytest.mark.parametrize("value", [None, "ab", [], ["one"], ["a", 3], ["a", ""], ["a", "\udc80"], {"a": "b"}])
def test_not_texts(value):
    with pytest.raises(FormatError, match="here: k"):
        Row("here", {"k": value}).texts("k")


@pytest.mark.parametrize("value", [None, -1, 2, 1.0, True, "1"])
def test_not_an_index(value):
    with pytest.raises(FormatError, match=r"here: k is .* expected a number in 0\.\.1"):
        Row("here", json.loads(json.dumps({"k": value}))).index("k", 2)
