"""Whatever bytes a file holds, reading it succeeds or raises FormatError: no other exception, no hang."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bitnet.errors import FormatError
from bitnet.formats.safetensors import read_safetensors
from bitnet.formats.tensor import NUMPY_DTYPES

GOLDEN = Path(__file__).parents[1] / "golden" / "packed_offline" / "model.safetensors"
WHOLE = GOLDEN.read_bytes()
HEADER_END = 8 + int.from_bytes(WHOLE[:8], "little")


def survives(content: bytes) -> bool:
    """Whether the content was accepted; then every tensor lies inside the file and can be read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content)
        try:
            tensors = read_safetensors(path)
        except FormatError:
            return False
        assert sum(tensor.data.nbytes for tensor in tensors.values()) <= len(content)
        for tensor in tensors.values():
            assert tensor.data.shape == tensor.shape
            assert tensor.data.dtype == NUMPY_DTYPES[tensor.dtype]
            tensor.data.tobytes()
        return True


def with_header(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


@given(st.binary(max_size=200))
@example(b"")
@example(b"\0" * 8)
@example(b"\xff" * 16)
def test_random_bytes(content):
    survives(content)


@given(st.integers(0, len(WHOLE) - 1))
@example(0)
@example(7)
@example(HEADER_END)
@example(len(WHOLE) - 1)
def test_truncated(length):
    assert not survives(WHOLE[:length])


@given(st.integers(0, 2**64 - 1))
@example(2**63)
@example(2**64 - 1)
@example(len(WHOLE) - 8)
@example(10**8)
def test_header_length(length):
    accepted = survives(length.to_bytes(8, "little") + WHOLE[8:])
    assert accepted == (length == HEADER_END - 8)


@given(st.integers(0, HEADER_END - 1), st.integers(1, 255))
def test_one_flipped_byte_in_the_header(place, flip):
    content = bytearray(WHOLE[:HEADER_END] + WHOLE[HEADER_END:])
    content[place] ^= flip
    survives(bytes(content))


@given(st.binary(max_size=60))
@example(b'{"\xff":{"dtype":"U8","shape":[],"data_offsets":[0,1]}}')
@example(b"[" * 60)
@example(b'{"x":' * 12)
@example(b'"text"')
@example(b"{}")
def test_random_header(header):
    survives(with_header(header, b"\0"))


dtypes = st.sampled_from([*NUMPY_DTYPES, "BOOL", "F8_E4M3", "F4", "U16", "u8", "", "X"])
numbers = st.one_of(st.integers(-3, 20), st.sampled_from([2**31, 2**32, 2**62, 2**63, 2**64, 10**30]))
entries = st.fixed_dictionaries(
    {
        "dtype": dtypes,
        "shape": st.lists(numbers, max_size=4),
        "data_offsets": st.lists(numbers, min_size=2, max_size=2),
    }
)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=5), lambda inner: st.lists(inner, max_size=3)
)


@given(st.dictionaries(st.text(max_size=6), entries | json_values, max_size=3), st.integers(0, 40))
def test_random_entries(header, size):
    survives(with_header(json.dumps(header).encode(), bytes(size)))


@given(
    st.lists(st.tuples(st.sampled_from(["U8", "BF16", "F32"]), st.integers(0, 5)), min_size=1, max_size=4),
    st.data(),
)
def test_offsets_that_leave_holes_or_overlap(layout, data):
    """A sound file is accepted; shifting one bound of one tensor makes it unsound."""
    header, offset = {}, 0
    for i, (dtype, count) in enumerate(layout):
        end = offset + count * NUMPY_DTYPES[dtype].itemsize
        header[f"t{i}"] = {"dtype": dtype, "shape": [count], "data_offsets": [offset, end]}
        offset = end
    content = bytes(offset)
    assert survives(with_header(json.dumps(header).encode(), content))
    bounds = header[f"t{data.draw(st.integers(0, len(layout) - 1))}"]["data_offsets"]
    bounds[data.draw(st.integers(0, 1))] += data.draw(st.sampled_from([-1, 1, 8]))
    assert not survives(with_header(json.dumps(header).encode(), content))


@given(st.sampled_from(["U8", "F32"]), st.sampled_from(["I8", "BF16", "I32", "U8", "F32"]))
def test_a_name_given_twice(first, second):
    one = f'"x":{{"dtype":"{first}","shape":[4],"data_offsets":[0,{4 * NUMPY_DTYPES[first].itemsize}]}}'
    two = f'"x":{{"dtype":"{second}","shape":[4],"data_offsets":[0,{4 * NUMPY_DTYPES[second].itemsize}]}}'
    assert not survives(with_header(f"{{{one},{two}}}".encode(), bytes(4 * NUMPY_DTYPES[second].itemsize)))


def test_a_huge_header_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((1 << 32).to_bytes(8, "little"))
        file.truncate(1 << 33)  # sparse: it takes no disk
    with pytest.raises(FormatError, match="has a header of 4,294,967,296 bytes"):
        read_safetensors(path)


def test_a_huge_tensor_is_mapped_and_not_loaded(tmp_path):
    path, size = tmp_path / "model.safetensors", 1 << 35
    header = json.dumps({"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    with path.open("wb") as file:
        file.write(with_header(header))
        file.truncate(8 + len(header) + size)
    data = read_safetensors(path)["x"].data
    assert data.shape == (size,)
    assert not np.any(data[-4096:])
