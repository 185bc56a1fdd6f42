"""Prepared folders: what is written is read, nothing half-written is left, nothing damaged is accepted."""

import errno
import hashlib
import json
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import FormatError, InputError, ResourceError, UnsupportedError
from bitnet.train.shard_writer import ShardWriter
from bitnet.train.shards import Corpus, Manifest

TOKENIZER = b'{"a": 1}'


def write(folder, documents, vocab_size=1000, shard_tokens=40, split="train"):
    with ShardWriter(folder, TOKENIZER, vocab_size, (0,), shard_tokens) as writer:
        for number, document in enumerate(documents):
            writer.add(split, np.array(document), number)
    return folder


@pytest.fixture
def documents():
    generator = np.random.default_rng(0)
    return [[0, *generator.integers(1, 1000, generator.integers(0, 30)).tolist()] for _ in range(50)]


@pytest.fixture
def folder(tmp_path, documents):
    return write(tmp_path / "data", documents)


@pytest.mark.parametrize("vocab_size", [1000, 65536, 65537])
def test_ids_come_back_whatever_the_shards(tmp_path, documents, vocab_size):
    documents[3][-1] = vocab_size - 1
    expected = np.concatenate(documents)
    starts = np.cumsum([0] + [len(document) for document in documents[:-1]])
    for shard_tokens in (1, 40, 10**6):
        folder = write(tmp_path / str(shard_tokens), documents, vocab_size, shard_tokens)
        corpus = Corpus.open(folder)
        assert corpus.take(0, len(corpus)).tolist() == expected.tolist()
        assert corpus.document_starts().tolist() == starts.tolist()
        assert (corpus.documents, corpus.text_bytes) == (50, sum(range(50)))
        assert (corpus.separator, len(corpus)) == ((0,), len(expected))
    shards = Manifest.read(tmp_path / "40").splits["train"]
    assert len(shards) > 5
    assert all(40 <= shard.tokens < 40 + 30 for shard in shards[:-1])
    assert len(Manifest.read(tmp_path / "1").splits["train"]) == 50


def test_the_bytes_on_disk_are_those_of_the_format(tmp_path):
    write(tmp_path / "data", [[0, 1, 258], [0]])
    assert (tmp_path / "data" / "train-00000.bin").read_bytes() == bytes([0, 0, 1, 0, 2, 1, 0, 0])
    assert (tmp_path / "data" / "train-00000.idx").read_bytes() == bytes(8) + bytes([3]) + bytes(7)
    assert (tmp_path / "data" / "tokenizer.json").read_bytes() == TOKENIZER
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest == {
        "version": 1,
        "tokenizer_sha256": hashlib.sha256(TOKENIZER).hexdigest(),
        "vocab_size": 1000,
        "dtype": "uint16",
        "separator": [0],
        "splits": {
            "train": [
                {
                    "file": "train-00000.bin",
                    "tokens": 4,
                    "documents": 2,
                    "text_bytes": 1,
                    "sha256": hashlib.sha256(bytes([0, 0, 1, 0, 2, 1, 0, 0])).hexdigest(),
                    "index_sha256": hashlib.sha256(bytes(8) + bytes([3]) + bytes(7)).hexdigest(),
                }
            ]
        },
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    start=st.integers(0, 200),
    length=st.integers(0, 99),
)
def test_taking_goes_round_the_ring(sizes, start, length):
    whole = np.arange(sum(sizes), dtype=np.uint16)
    parts = np.split(whole, np.cumsum(sizes)[:-1])
    corpus = Corpus(parts, [np.zeros(1, np.uint64)] * len(parts), "ring", (0,), 0)
    taken = corpus.take(start, length)
    assert taken.dtype == np.int64
    assert taken.tolist() == [(start + place) % len(whole) for place in range(length)]


def test_ids_in_memory_are_a_corpus():
    corpus = Corpus.from_ids(
        np.array([0, 1, 0, 2], np.uint16), "x", np.array([0, 2], np.uint64), text_bytes=2
    )
    assert (len(corpus), corpus.documents, corpus.text_bytes, corpus.name) == (4, 2, 2, "x")
    assert corpus.take(3, 3).tolist() == [2, 0, 1]


def test_splits_lie_side_by_side(tmp_path, documents):
    with ShardWriter(tmp_path / "data", TOKENIZER, 1000, (0,), 40) as writer:
        for number, document in enumerate(documents):
            writer.add("validation" if number % 5 == 0 else "train", np.array(document), 1)
    parts = [Corpus.open(tmp_path / "data", split).documents for split in ("train", "validation")]
    assert parts == [40, 10]
    with pytest.raises(InputError, match=r"no split 'test', only"):
        Corpus.open(tmp_path / "data", "test")


def test_a_folder_with_content_is_left_alone(folder, documents):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="exists already"):
        write(folder, documents[:1])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["data"]


def test_a_failure_on_the_way_leaves_nothing(tmp_path, documents):
    def interrupted():
        yield from documents
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "data", interrupted())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("document", [[0, 1000], [-1], []])
def test_ids_beyond_the_vocabulary_are_not_written(tmp_path, document):
    with pytest.raises(InputError, match="vocab_size is 1000"):
        write(tmp_path / "data", [[0, 1], document])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("allowed", [5, 300, 1500])  # in the tokenizer, a shard, the manifest
def test_a_full_disk_is_one_error_and_leaves_nothing(tmp_path, documents, allowed):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, before[1]))
    try:
        with pytest.raises(ResourceError, match=r"data: cannot be written"):
            write(tmp_path / "data", documents, shard_tokens=40 if allowed == 1500 else 10**6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_finished_data_survive_a_name_that_is_taken_meanwhile(tmp_path):
    def meanwhile():
        yield [0, 1]
        (tmp_path / "data" / "theirs").mkdir(parents=True)

    with pytest.raises(ResourceError, match="finished data lie in") as refusal:
        write(tmp_path / "data", meanwhile())
    assert Corpus.open(Path(str(refusal.value).rsplit(" ", 1)[1])).documents == 1


def test_a_folder_without_permission_is_one_error(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResourceError, match="Permission denied"):
        write(tmp_path / "data", [[0]])


@pytest.mark.parametrize("name", ["train-00001.bin", "train-00002.idx"])
def test_damage_is_found_by_size_always_and_by_hash_on_request(folder, name):
    path = folder / name
    content = path.read_bytes()
    flipped = bytes([content[0] ^ 1]) + content[1:]
    path.write_bytes(flipped)
    hashes = rf"{name}.*{hashlib.sha256(flipped).hexdigest()}.*{hashlib.sha256(content).hexdigest()}"
    with pytest.raises(FormatError, match=hashes):
        Corpus.open(folder)
    Corpus.open(folder, verify=False)
    path.write_bytes(content + b"\0")
    with pytest.raises(FormatError, match=rf"{name}: has {len(content) + 1} bytes"):
        Corpus.open(folder, verify=False)
    path.unlink()
    with pytest.raises(FormatError, match=rf"{name}: not found"):
        Corpus.open(folder, verify=False)


def edit(folder, change):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest, manifest["splits"]["train"])
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m, t: m.update(version=2), "version is 2"),
        (lambda m, t: m.update(version=True), "version is True"),
        (lambda m, t: m.pop("vocab_size"), "vocab_size is None"),
        (lambda m, t: m.update(vocab_size=0), "vocab_size is 0"),
        (lambda m, t: m.update(vocab_size="1000"), "vocab_size"),
        (lambda m, t: m.update(vocab_size=70000), "dtype"),
        (lambda m, t: m.update(dtype="int8"), "dtype"),
        (lambda m, t: m.update(dtype=["uint16"]), "dtype"),
        (lambda m, t: m.update(separator=0), "separator"),
        (lambda m, t: m.update(separator=[]), "separator"),
        (lambda m, t: m.update(separator=[True]), "separator"),
        (lambda m, t: m.update(separator=[1000]), "separator"),
        (lambda m, t: m.update(tokenizer_sha256=None), "tokenizer_sha256"),
        (lambda m, t: m.update(splits=[]), "splits"),
        (lambda m, t: m.update(splits={"train": []}), "no shards"),
        (lambda m, t: m.update(splits={"train": {}}), "no shards"),
        (lambda m, t: t.append(1), "shard"),
        (lambda m, t: t[0].update(tokens=0), "shard 0: tokens is 0"),
        (lambda m, t: t[1].update(tokens=1 << 70), "shard 1: tokens"),
        (lambda m, t: t[0].update(tokens=1.0), "tokens"),
        (lambda m, t: t[0].update(tokens=t[0]["tokens"] + 1), "promises"),
        (lambda m, t: t[0].update(documents=t[0]["documents"] - 1), "promises"),
        (lambda m, t: t[0].update(text_bytes=-1), "text_bytes"),
        (lambda m, t: t[0].update(sha256=5), "sha256"),
        (lambda m, t: t[0].update(file="../data/train-00000.bin"), "file is"),
        (lambda m, t: t[0].update(file="/etc/x.bin"), "file is"),
        (lambda m, t: t[0].update(file="manifest.json"), "file is"),
        (lambda m, t: t[0].update(file="a\0.bin"), "file is"),
        (lambda m, t: t[0].update(file="b.bin"), "not found"),
        (lambda m, t: t[0].update(sha256="0" * 64), "sha256"),
        # What follows fits its hashes: only a faulty writer makes it.
        (lambda m, t: m.update(vocab_size=500), "holds the id"),
    ],
)
def test_damaged_manifests_are_refused_by_name(folder, change, reason):
    edit(folder, change)
    with pytest.raises((FormatError, UnsupportedError), match=reason) as refusal:
        Corpus.open(folder)
    assert str(folder) in str(refusal.value)


@pytest.mark.parametrize("starts", [[1, 2], [0, 0], [0, 99], [2, 1]])
def test_document_starts_that_do_not_rise_are_refused(tmp_path, starts):
    folder = write(tmp_path / "data", [[0, 1, 2], [0, 3]])
    index = np.array(starts, "<u8").tobytes()
    (folder / "train-00000.idx").write_bytes(index)
    edit(folder, lambda manifest, train: train[0].update(index_sha256=hashlib.sha256(index).hexdigest()))
    with pytest.raises(FormatError, match=r"train-00000\.idx: the document starts"):
        Corpus.open(folder)


def test_what_is_no_prepared_folder_is_refused(tmp_path, folder):
    for content in (b"", b"[]", b"{", b"\xff"):
        (folder / "manifest.json").write_bytes(content)
        with pytest.raises(FormatError, match=r"manifest\.json"):
            Corpus.open(folder)
    shutil.rmtree(folder)
    for missing in (folder, tmp_path):
        with pytest.raises(FormatError, match="bitnet prepare"):
            Corpus.open(missing)
