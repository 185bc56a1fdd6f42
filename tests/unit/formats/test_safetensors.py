import errno
import json
import os
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from safetensors import numpy as reference

from bitnet.errors import FormatError, ResourceError
from bitnet.formats import safetensors
from bitnet.formats.safetensors import (
    encode_header,
    file_order,
    read_checkpoint_files,
    read_safetensors,
    write_safetensors,
)


@pytest.fixture
def arrays():
    random = np.random.default_rng(3)
    return {
        "b.half": random.standard_normal((3, 5)).astype(np.float16),
        "a.bytes": random.integers(0, 255, (7,), dtype=np.uint8),
        "c.single": random.standard_normal((2, 2, 2)).astype(np.float32),
        "d.scalar": np.array(2.5, dtype=np.float32),
    }


def test_reads_what_the_library_writes(tmp_path, arrays):
    path = tmp_path / "model.safetensors"
    reference.save_file(arrays, path, metadata={"format": "pt"})
    tensors = read_safetensors(path)
    assert set(tensors) == set(arrays)
    for name, array in arrays.items():
        assert np.array_equal(tensors[name].data, array)
        assert tensors[name].shape == array.shape


def test_writes_the_librarys_bytes(tmp_path, arrays):
    names = {"float16": "F16", "uint8": "U8", "float32": "F32"}
    shapes = file_order({name: (names[str(array.dtype)], array.shape) for name, array in arrays.items()})
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    write_safetensors(ours, shapes, (arrays[name] for name in shapes), {"format": "pt"})
    reference.save_file(arrays, theirs, metadata={"format": "pt"})
    assert ours.read_bytes() == theirs.read_bytes()


def test_tensors_are_mapped_and_read_only(tmp_path):
    path = tmp_path / "model.safetensors"
    reference.save_file({"x": np.zeros((64, 64), dtype=np.float32)}, path)
    data = read_safetensors(path)["x"].data
    base = data
    while isinstance(base.base, np.ndarray):
        base = base.base
    assert isinstance(base, np.memmap)
    assert not data.flags.writeable
    assert data.flags.aligned


def test_misplaced_floats_are_realigned(tmp_path):
    path = tmp_path / "model.safetensors"
    values = np.arange(6, dtype=np.float32)
    shapes = {"byte": ("U8", (1,)), "x": ("F32", (6,))}
    write_safetensors(path, shapes, [np.zeros(1, np.uint8), values])
    data = read_safetensors(path)["x"].data
    assert data.flags.aligned
    assert np.array_equal(data, values)


def test_bfloat16_bits(golden):
    tensors = read_safetensors(golden / "bf16_online" / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    assert embedding.dtype == "BF16"
    assert embedding.data.dtype == np.uint16
    assert 0.1 < embedding.float32().std() < 10


def test_blocks_that_do_not_fill_the_file_are_refused(tmp_path):
    shapes = {"x": ("F32", (3,))}
    _, promised = encode_header(shapes)
    with pytest.raises(ValueError, match=f"{promised - 4} bytes were given, {promised} promised"):
        write_safetensors(tmp_path / "x", shapes, [np.zeros(2, np.float32)])


def test_too_little_disk_is_refused_before_writing(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(safetensors.shutil, "disk_usage", lambda _: usage(10**6, 10**6 - 100, 100))
    with pytest.raises(ResourceError, match=r"needs 4,0\d\d bytes of disk space, 100 are free"):
        write_safetensors(tmp_path / "x", {"x": ("F32", (1000,))}, [np.zeros(1000, np.float32)])
    assert not (tmp_path / "x").exists()


def test_a_disk_that_fills_up_is_named(tmp_path):
    def blocks():
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield

    with pytest.raises(ResourceError, match=r"the disk is full; \d+ bytes are needed"):
        write_safetensors(tmp_path / "x", {"x": ("F32", (1,))}, blocks())


@pytest.mark.parametrize("content", [b"", b"\x10", b"\xff" * 8, b"\x02" + bytes(7) + b"{}extra"])
def test_damaged_files(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"model\.safetensors: not a valid safetensors file"):
        read_safetensors(path)


def test_truncated_file(tmp_path, golden):
    whole = (golden / "packed_offline" / "model.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole[:-1])
    with pytest.raises(FormatError, match="not a valid safetensors file"):
        read_safetensors(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_what_is_no_file(tmp_path, kind):
    path = tmp_path / "model.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(FormatError, match="not found, or not a file"):
        read_safetensors(path)


def raw_file(path: Path, header: str, data: bytes) -> Path:
    text = header.encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "size", "message"),
    [
        (
            '{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"x":{"dtype":"I8","shape":[2],"data_offsets":[0,2]}}',
            2,
            "'x' stands there twice",
        ),
        ('{"x":["U8",[2],[0,2]]}', 2, "x is a list"),
        ('{"x":{"dtype":"BOOL","shape":[2],"data_offsets":[0,2]}}', 2, "x is BOOL; readable are"),
        ('{"x":{"dtype":"U8","shape":[0,9223372036854775808],"data_offsets":[0,0]}}', 0, "impossible shape"),
        ('{"x":{"dtype":"U8","shape":[' + "1," * 70 + '1],"data_offsets":[0,1]}}', 1, "impossible shape"),
        ('{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,2]}}', 2, "not a valid"),
        ('{"x":{"dtype":"U8","shape":[-2],"data_offsets":[0,2]}}', 2, "not a valid"),
        ('{"x":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}', 3, "not a valid"),
        (
            '{"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}',
            3,
            "not a valid",
        ),
    ],
)
def test_lying_headers(tmp_path, header, size, message):
    path = raw_file(tmp_path / "model.safetensors", header, bytes(size))
    with pytest.raises(FormatError, match=message):
        read_safetensors(path)


@pytest.fixture
def sharded(tmp_path):
    """Two shards and an index in an order of its own; returns (folder, index)."""
    for shard, names in (("a", ["x", "y"]), ("b", ["z"])):
        content = {name: np.full(2, ord(name), dtype=np.uint8) for name in names}
        reference.save_file(content, tmp_path / f"{shard}.safetensors")
    index = {"z": "b.safetensors", "y": "a.safetensors", "x": "a.safetensors"}

    def write(changes):
        merged = {name: shard for name, shard in (index | changes).items() if shard is not None}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": merged}))
        return tmp_path

    return write


def test_shards(sharded):
    tensors = read_checkpoint_files(sharded({}))
    assert {name: int(tensor.data[0]) for name, tensor in tensors.items()} == {"x": 120, "y": 121, "z": 122}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": "c.safetensors"}, r"c\.safetensors: not found"),
        ({"w": "b.safetensors"}, r"places w in b\.safetensors, which does not hold it"),
        ({"y": None}, r"a\.safetensors: holds y, which .* does not place there"),
        ({"y": "b.safetensors"}, r"a\.safetensors: holds y, which .* does not place there"),
        ({"x": "../a.safetensors"}, r"places x in '\.\./a\.safetensors'"),
        ({"x": "/etc/a.safetensors"}, "places x in"),
        ({"x": "..\\\\a.safetensors"}, "places x in"),
        ({"x": 3}, "places x in 3"),
        ({"x": "a.bin"}, r"places x in 'a\.bin'"),
        ({"x": "a\0.safetensors"}, "not found|places x"),
    ],
)
def test_index_that_lies(sharded, changes, message):
    with pytest.raises(FormatError, match=message):
        read_checkpoint_files(sharded(changes))


@pytest.mark.parametrize(
    "index", ["[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "{", '{"weight_map": 1']
)
def test_broken_index(tmp_path, index):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(FormatError, match=r"index\.json"):
        read_checkpoint_files(tmp_path)


def test_folder_without_weights(tmp_path):
    with pytest.raises(FormatError, match=r"holds neither model\.safetensors nor"):
        read_checkpoint_files(tmp_path)
