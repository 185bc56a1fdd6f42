"""Documents of every kind of source, in order, and a refusal that names the place for every damaged one."""

import bz2
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import BitnetError, FormatError, InputError, ResourceError, UnsupportedError
from bitnet.train import documents as module
from bitnet.train.documents import SEPARATOR, Source, texts

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


def read(path):
    return list(Source(str(path)).documents())


def write(path, content):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_text_is_split_at_separator_lines_only(tmp_path):
    path = write(
        tmp_path / "t.txt",
        b"\xef\xbb\xbfOne.\r\n\r\nStill one.\n<|endoftext|>\nTwo <|endoftext|> two.\n <|endoftext|>\n"
        b"<|endoftext|>\r\n\n<|endoftext|>\nThree\x85\x0c.".replace(b"\x85", "\x85\u2028".encode()),
    )
    assert read(path) == [
        "One.\n\nStill one.",
        "Two <|endoftext|> two.\n <|endoftext|>",
        "",
        "Three\x85\u2028\x0c.",
    ]


@pytest.mark.parametrize("content", ["", "\n\n", f"{SEPARATOR}\n", f"\n{SEPARATOR}"])
def test_a_text_of_nothing_holds_no_document(tmp_path, content):
    assert read(write(tmp_path / "t.txt", content)) == []


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)))
def test_text_comes_back_as_it_was_joined(tmp_path_factory, lines):
    documents = [line for line in lines if line != SEPARATOR and not line.startswith("\ufeff")]
    path = write(tmp_path_factory.mktemp("t") / "t", f"\n{SEPARATOR}\n".join(documents))
    assert read(path) == documents


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip), (".bz2", bz2), (".xz", lzma)])
def test_compressed_files_are_read_and_damaged_ones_refused(tmp_path, suffix, pack):
    text = "\n".join(f"{number} word\n{SEPARATOR}" for number in range(3000))
    packed = pack.compress(text.encode())
    source = Source(str(write(tmp_path / f"t.txt{suffix}", packed)))
    assert len(list(source.documents())) == 3000
    assert source.position == source.size == len(packed)
    for number, damaged in enumerate((packed[:-30], packed[: len(packed) // 2] + b"\0" * 99, b"no archive")):
        with pytest.raises(FormatError, match=rf"{number}\.txt\{suffix}"):
            read(write(tmp_path / f"{number}.txt{suffix}", damaged))


def test_json_lines_hold_text_or_conversations(tmp_path):
    rows = [{"text": "é\u2028a", "id": 1}, {"messages": CHAT}, {"text": ""}]
    path = write(tmp_path / "t.jsonl", "\n\n".join(json.dumps(row) for row in rows))
    assert read(path) == ["é\u2028a", CHAT, ""]
    assert [texts(document) for document in read(path)] == [["é\u2028a"], ["Hi", "Hello"], [""]]
    assert read(write(tmp_path / "t.jsonl.gz", gzip.compress(path.read_bytes()))) == read(path)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "a"', "JSON"),
        ("[1]", "object"),
        ("\xff", "JSON"),
        ('{"text": 1}', "text is int"),
        ('{"text": null}', "NoneType"),
        ('{"text": "\\ud800"}', "surrogate"),
        ('{"text": "a", "text": "b"}', "twice"),
        ('{"text": "a", "messages": []}', "both"),
        ('{"body": "a"}', "has body"),
        ("{}", "nothing"),
        ('{"messages": []}', "messages"),
        ('{"messages": "a"}', "messages"),
        ('{"messages": ["a"]}', "str"),
        ('{"messages": [{"role": "user"}]}', "content is NoneType"),
        ('{"messages": [{"role": "user", "content": null}]}', "content"),
        ('{"messages": [{"role": 1, "content": "a"}]}', "role is int"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, reason):
    path = write(tmp_path / "t.jsonl", b'{"text": "a"}\n\n' + line.encode("latin-1") + b"\n")
    with pytest.raises(FormatError, match=rf"t\.jsonl: line 3.*{reason}"):
        read(path)


def test_text_that_is_not_utf8_is_named_by_line(tmp_path):
    with pytest.raises(FormatError, match=r"t\.txt: line 2"):
        read(write(tmp_path / "t.txt", b"a\n\xff\xfe\x00\n"))


def test_endless_documents_and_lines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LONGEST", 100)
    with pytest.raises(FormatError, match=r"begins in line 3 is longer"):
        read(write(tmp_path / "a.txt", f"a\n{SEPARATOR}\n" + "b\n" * 90))
    with pytest.raises(FormatError, match=r"line 2 is longer"):
        read(write(tmp_path / "b.txt", "a\n" + "b" * 101))
    table = pa.table({"text": ["c" * 101]})
    pq.write_table(table, tmp_path / "c.parquet")
    with pytest.raises(FormatError, match=r"c\.parquet: row 1: text is longer"):
        read(tmp_path / "c.parquet")


def test_tables_hold_text_or_conversations(tmp_path):
    pq.write_table(pa.table({"n": [1, 2], "text": ["a", ""]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"messages": [CHAT, CHAT[:1]] * 2000}), tmp_path / "b.parquet")
    assert read(tmp_path / "a.parquet") == ["a", ""]
    source = Source(str(tmp_path / "b.parquet"))
    assert list(source.documents()) == [CHAT, CHAT[:1]] * 2000
    assert source.position == source.size


def test_bad_tables_are_named(tmp_path):
    path = tmp_path / "t.parquet"
    for table, reason in (
        (pa.table({"text": ["a", None]}), "row 2: text is NoneType"),
        (pa.table({"text": [1]}), "row 1: text is int"),
        (pa.table({"body": ["a"]}), "has body"),
        (pa.table({"messages": [CHAT, None]}), "row 2: messages"),
    ):
        pq.write_table(table, path)
        with pytest.raises(FormatError, match=rf"t\.parquet: .*{reason}"):
            read(path)
    pq.write_table(pa.table({"text": [str(number) * 50 for number in range(5000)]}), path)
    content = path.read_bytes()
    for damaged in (b"", b"PAR1", content[:-9], content[:200] + b"\xff" * 2000 + content[2200:]):
        with pytest.raises(FormatError, match=r"t\.parquet"):
            read(write(path, damaged))


@pytest.mark.filterwarnings("default")  # the library's own
def test_data_sets_are_read_by_name_and_split(tmp_path):
    for split in ("train", "test"):
        rows = [{"text": f"{split} {number}", "label": number} for number in range(3)]
        write(tmp_path / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    assert read(f"hf:{tmp_path}") == ["train 0", "train 1", "train 2"]
    assert read(f"hf:{tmp_path}:test") == ["test 0", "test 1", "test 2"]
    assert read(f"hf:{tmp_path}@default:test") == ["test 0", "test 1", "test 2"]
    assert Source(f"hf:{tmp_path}").size is None
    for name in (f"hf:{tmp_path}:none", f"hf:{tmp_path}@none", f"hf:{tmp_path / 'missing'}"):
        with pytest.raises(ResourceError, match=name):
            read(name)
    write(tmp_path / "test.jsonl", '{"body": "a"}\n')
    with pytest.raises(BitnetError, match=f"hf:{tmp_path}"):
        read(f"hf:{tmp_path}:test")


def test_what_is_no_source_is_refused_before_it_is_read(tmp_path):
    write(tmp_path / "t.csv", "a")
    for name, error in (
        (tmp_path, InputError),
        (tmp_path / "missing.txt", FormatError),
        (tmp_path / "t.csv", UnsupportedError),
        ("hf:", InputError),
        ("hf::train", InputError),
    ):
        with pytest.raises(error, match=str(name)):
            Source(str(name)).documents()
    with pytest.raises(FormatError, match="missing"):
        _ = Source(str(tmp_path / "missing.txt")).size


def test_a_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    for name in (write(tmp_path / "t.parquet", ""), "hf:name"):
        with pytest.raises(ResourceError, match=r"bitnet-ternary\[data\]"):
            read(name)
