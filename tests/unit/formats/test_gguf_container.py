"""GGUF's container: what is written is read back, and what cannot be right is refused by name."""

import struct

import numpy as np
import pytest

from bitnet.errors import BitnetError, ConfigError, FormatError, InputError, ResourceError, UnsupportedError
from bitnet.formats.gguf import container_writer
from bitnet.formats.gguf.block_types import F16, F32, I2_S, Q6_K, TQ2_0, block_type
from bitnet.formats.gguf.container import is_gguf, read_container
from bitnet.formats.gguf.container_writer import Int32Array, Planned, encode_header, write_container

METADATA = {
    "general.architecture": "bitnet",
    "a.count": 7,
    "a.number": 1e-5,
    "a.flag": True,
    "a.words": ["", "Ġthe", "日本"],
    "a.types": Int32Array([1, -3, 5]),
}
TENSORS = {
    "first": Planned(F32, (3,)),
    "second.weight": Planned(F16, (2, 5)),
    "third": Planned(TQ2_0, (2, 256)),
}


def random_blocks(tensors, seed=0):
    random = np.random.default_rng(seed)
    return {name: random.integers(0, 256, item.size(name), np.uint8) for name, item in tensors.items()}


@pytest.fixture
def written(tmp_path):
    def write(metadata=METADATA, tensors=TENSORS):
        path = tmp_path / "model.gguf"
        blocks = random_blocks(tensors)
        write_container(path, metadata, tensors, blocks.items())
        return path, blocks

    return write


def header(*parts):
    """Bytes of a hand-made header: str is a length-prefixed string, int is u32, bytes as they are."""
    made = [struct.pack("<Q", len(p.encode())) + p.encode() if isinstance(p, str) else p for p in parts]
    return b"".join(struct.pack("<I", part) if isinstance(part, int) else part for part in made)


def u64(*values):
    return struct.pack(f"<{len(values)}Q", *values)


def refusal(tmp_path, content, error=FormatError):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    with pytest.raises(error) as raised:
        read_container(path)
    assert str(path) in str(raised.value)
    return str(raised.value)


def one_tensor(name="x", shape=(4,), kind=0, offset=0, data=bytes(64), alignment=()):
    head = header(b"GGUF", 3, u64(1, 1 if alignment else 0), *alignment, name, len(shape), u64(*shape), kind)
    head += u64(offset)
    return head + bytes(-len(head) % 32) + data


def test_round_trip(written):
    path, blocks = written()
    container = read_container(path)
    metadata = container.metadata
    assert list(metadata) == list(METADATA)
    assert metadata.text("general.architecture") == "bitnet"
    assert metadata.integer("a.count") == 7
    assert metadata.number("a.number") == 1e-5
    assert metadata.boolean("a.flag") is True
    assert metadata.strings("a.words", most=3) == METADATA["a.words"]
    assert metadata.integers("a.types", 3).tolist() == [1, -3, 5]
    assert list(container.tensors) == list(TENSORS)
    for name, item in TENSORS.items():
        assert container.tensors[name].shape == item.shape
        assert container.tensors[name].type is item.type
        np.testing.assert_array_equal(container.tensors[name].raw, blocks[name])
    assert not container.tensors["first"].raw.flags.writeable


def test_the_reference_library_reads_the_same(written):
    gguf = pytest.importorskip("gguf")
    path, blocks = written()
    theirs = gguf.GGUFReader(path)
    assert theirs.get_field("a.words").contents() == METADATA["a.words"]
    assert theirs.get_field("a.types").contents() == [1, -3, 5]
    assert [tensor.name for tensor in theirs.tensors] == list(TENSORS)
    for tensor in theirs.tensors:
        assert tuple(tensor.shape[::-1]) == TENSORS[tensor.name].shape
        np.testing.assert_array_equal(
            np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8), blocks[tensor.name]
        )


def test_what_the_reference_library_writes_is_read(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "bitnet")
    writer.add_block_count(30)
    writer.add_array("a.numbers", [0.5, 2.0])
    writer.add_float64("a.wide", 0.1)
    writer.add_int8("a.small", -3)
    writer.add_token_list(["a", "b"])
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    writer.add_tensor("m", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    container = read_container(path)
    assert container.metadata.integer("bitnet.block_count") == 30
    assert container.metadata.integer("a.small") == -3
    assert container.metadata["a.numbers"].tolist() == [0.5, 2.0]
    assert container.metadata["a.wide"] == 0.1
    assert container.metadata.strings("tokenizer.ggml.tokens", 2) == ["a", "b"]
    assert container.tensors["m"].shape == (2, 3)
    np.testing.assert_array_equal(container.tensors["m"].raw.view("<f4"), matrix.reshape(-1))


def test_version_2_is_the_same_layout(written):
    path, _ = written()
    content = path.read_bytes()
    path.write_bytes(content[:4] + struct.pack("<I", 2) + content[8:])
    assert list(read_container(path).tensors) == list(TENSORS)


@pytest.mark.parametrize("version", [0, 1, 4, 2**31 + 3])
def test_other_versions(tmp_path, version):
    assert f"version {version} " in refusal(tmp_path, header(b"GGUF", version, u64(0, 0)), UnsupportedError)


def test_big_endian(tmp_path):
    content = b"GGUF" + struct.pack(">IQQ", 3, 0, 0)
    assert "big-endian" in refusal(tmp_path, content, UnsupportedError)


@pytest.mark.parametrize("content", [b"", b"GG", b"GGUF", b"PK\3\4" + bytes(40), b"GGUF\3\0\0\0" + bytes(15)])
def test_no_whole_header(tmp_path, content):
    refusal(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(b"GGUF", 3, u64(2**63, 0)), "announces 9,223,372,036,854,775,808 tensors"),
        (header(b"GGUF", 3, u64(0, 2**40)), "announces 1,099,511,627,776 keys"),
        (header(b"GGUF", 3, u64(0, 1), u64(2**62), bytes(40)), "key 0 has 4,611,686,018,427,387,904 bytes"),
        (header(b"GGUF", 3, u64(0, 1), "k", 8, u64(2**24)), "'k' needs 16,777,216 bytes"),
        (header(b"GGUF", 3, u64(0, 1), "k", 8, u64(2**62)), "'k' has 4,611,686,018,427,387,904 bytes"),
        (header(b"GGUF", 3, u64(0, 1), "k", 13, bytes(8)), "'k' has the value type 13"),
        (header(b"GGUF", 3, u64(0, 1), "k", 7, b"\2", bytes(8)), "truth value 2"),
        (header(b"GGUF", 3, u64(0, 1), "k", 9, 9, u64(1), 9, u64(1)), "array of arrays"),
        (header(b"GGUF", 3, u64(0, 1), "k", 9, 8, u64(2**61)), "strings in 'k', more than"),
        (header(b"GGUF", 3, u64(0, 1), "k", 9, 10, u64(2**61)), "numbers in 'k', more than"),
        (header(b"GGUF", 3, u64(0, 1), "k", 9, 8, u64(2), "a", u64(99), b"b"), "'k' needs 99 bytes"),
        (header(b"GGUF", 3, u64(0, 1), u64(1), b"\xff", 4, 1), "key 0 is not UTF-8"),
        (header(b"GGUF", 3, u64(0, 1), "a\x1b[31m", 4, 1), "cannot be printed"),
        (header(b"GGUF", 3, u64(0, 2), "k", 4, 1, "k", 4, 2), "'k' stands there twice"),
    ],
)
def test_impossible_keys(tmp_path, content, message):
    assert message in refusal(tmp_path, content + bytes(16))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (one_tensor(shape=(0,)), "impossible shape [0]"),
        (one_tensor(shape=(2**32, 2**32)), "impossible shape"),
        (one_tensor(shape=(2**63,)), "impossible shape"),
        (one_tensor(shape=()), "has 0 axes"),
        (one_tensor(shape=(1,) * 5), "has 5 axes"),
        (one_tensor(shape=(2**40,)), "it is cut off"),
        (one_tensor(offset=2**63), "it is cut off"),
        (one_tensor(offset=64), "it is cut off"),
        (one_tensor(offset=4), "no multiple of 32"),
        (one_tensor(kind=14, shape=(128, 2)), "a row of 128 is not a multiple of 256"),
        (one_tensor(kind=36, shape=(64, 1)), "a tensor of 64 is not a multiple of 128"),
        (one_tensor(alignment=("general.alignment", 4, 24)), "general.alignment is 24"),
        (one_tensor(alignment=("general.alignment", 4, 0)), "general.alignment is 0"),
        (one_tensor(alignment=("general.alignment", 4, 4)), "general.alignment is 4"),
        (one_tensor(name="x" * 1025), "has 1,025 bytes"),
    ],
)
def test_impossible_tensors(tmp_path, content, message):
    assert message in refusal(tmp_path, content)


def two_tensors(second, offset):
    table = header("x", 1, u64(16), 0) + u64(0) + header(second, 1, u64(4), 0) + u64(offset)
    head = header(b"GGUF", 3, u64(2, 0)) + table
    return head + bytes(-len(head) % 32) + bytes(128)


def test_overlapping_tensors(tmp_path):
    assert "y starts inside x" in refusal(tmp_path, two_tensors("y", 32))
    assert "x stands there twice" in refusal(tmp_path, two_tensors("x", 64))
    (tmp_path / "good.gguf").write_bytes(two_tensors("y", 64))
    assert list(read_container(tmp_path / "good.gguf").tensors) == ["x", "y"]


@pytest.mark.parametrize(
    ("type_id", "name"),
    [
        *[(2, "Q4_0"), (38, "TL1"), (39, "TL2"), (39, "MXFP4"), (42, "TL2"), (42, "Q2_0"), (41, "Q1_0")],
        *[(142, "Bonsai"), (143, "Bonsai"), (99, "type 99"), (2**32 - 1, "type 4294967295")],
    ],
)
def test_types_that_are_not_read_are_named(tmp_path, type_id, name):
    message = refusal(tmp_path, one_tensor(kind=type_id), UnsupportedError)
    assert name in message
    assert "x has type" in message
    assert "safetensors" in message


def test_typed_access_names_the_key(written):
    path, _ = written()
    metadata = read_container(path).metadata
    for call, key in [
        (metadata.integer, "a.flag"),
        (metadata.integer, "a.number"),
        (metadata.text, "a.count"),
        (metadata.boolean, "a.count"),
        (metadata.number, "a.words"),
        (lambda key: metadata.strings(key, 9), "a.types"),
        (lambda key: metadata.strings(key, 9), "absent"),
        (lambda key: metadata.integers(key, 3), "a.words"),
        (lambda key: metadata.integers(key, 4), "a.types"),
        (metadata.required_integer, "absent"),
    ]:
        with pytest.raises(ConfigError, match=key):
            call(key)
    with pytest.raises(FormatError, match=r"a\.words has 3 entries; at most 2"):
        metadata.strings("a.words", most=2)


def test_writing_keeps_what_exists(written):
    path, _ = written()
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists already"):
        write_container(path, METADATA, TENSORS, [])
    assert path.read_bytes() == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_broken_write_leaves_nothing(tmp_path, error):
    def blocks():
        yield "first", np.zeros(12, np.uint8)
        raise error

    with pytest.raises(ResourceError if isinstance(error, OSError) else KeyboardInterrupt):
        write_container(tmp_path / "new" / "model.gguf", METADATA, TENSORS, blocks())
    assert not any((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    "blocks", [[], [("second.weight", 20)], [("first", 8), ("second.weight", 20)], [("first", 12)]]
)
def test_blocks_that_were_not_promised(tmp_path, blocks):
    with pytest.raises(ValueError, match=r"promised|missing"):
        write_container(
            tmp_path / "model.gguf", {}, TENSORS, [(name, np.zeros(size, np.uint8)) for name, size in blocks]
        )
    assert not any(tmp_path.iterdir())


def test_no_room(tmp_path, monkeypatch):
    def refuse(*_):
        raise ResourceError("no room")

    monkeypatch.setattr(container_writer, "require_space", refuse)
    with pytest.raises(ResourceError):
        write_container(tmp_path / "model.gguf", METADATA, TENSORS, [])
    assert not any(tmp_path.iterdir())


def test_header_states_the_size(written):
    path, _ = written()
    head, size = encode_header(METADATA, TENSORS)
    assert path.read_bytes().startswith(head)
    assert path.stat().st_size == size
    assert len(head) % 32 == 0


def test_sizes():
    assert I2_S.size((2, 192), "x") == 96 + 32
    assert Q6_K.size((3, 512), "x") == 6 * 210
    assert block_type(36, "x") is I2_S


def test_is_gguf(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"")
    (tmp_path / "b").write_bytes(b"GGUF....")
    (tmp_path / "c").write_bytes(b"{}")
    assert [is_gguf(tmp_path / name) for name in "bcd"] == [True, False, False]
    assert is_gguf(tmp_path / "a.gguf")


def test_missing_file(tmp_path):
    with pytest.raises(BitnetError, match=r"none\.gguf"):
        read_container(tmp_path / "none.gguf")
