"""Documents, ids, and the order of windows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import ConfigError, FormatError, InputError
from bitnet.train.config import DataSource
from bitnet.train.data import Batches, encode, read_documents


def test_documents_are_split_at_separator_lines_only(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(
        b"One.\r\n\r\nStill one.\n<|endoftext|>\nTwo <|x|> two.\n<|endoftext|>\n\n<|endoftext|>\n"
    )
    assert read_documents(path) == ["One.\n\nStill one.", "Two <|x|> two."]


@pytest.mark.parametrize("content", [b"", b"\n<|endoftext|>\n", b"\xff\xfe\x00"])
def test_files_without_text_are_refused_by_name(tmp_path, content):
    path = tmp_path / "t.txt"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"t\.txt"):
        read_documents(path)


def test_the_separator_stands_before_every_document(tokenizer):
    ids = encode(tokenizer, ["The cat", "the dog"])
    assert ids.dtype == np.uint16
    assert (ids == 0).nonzero()[0].tolist() == [
        0,
        1 + len(tokenizer.encode("The cat", add_special_tokens=False)),
    ]
    assert tokenizer.decode(ids.tolist()) == "The catthe dog"


def test_one_pass_reads_every_window_once_and_targets_are_one_later():
    stream = np.arange(103, dtype=np.uint16)
    batches = Batches([stream], [DataSource("a")], length=10, seed=1)
    assert len(batches) == 10
    inputs, targets = batches.batch(0, 10)
    np.testing.assert_array_equal(targets, (inputs + 1) % 103)
    assert len(set(inputs.flatten().tolist())) == 100


def test_batches_depend_on_seed_and_step_alone():
    stream = np.arange(200, dtype=np.uint16)
    first, second, other = (Batches([stream], [DataSource("a", 3)], 10, seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.batch(7, 4)[0], second.batch(7, 4)[0])
    assert not np.array_equal(first.batch(7, 4)[0], other.batch(7, 4)[0])


def test_passes_come_one_after_the_other_and_then_start_again():
    stream = np.arange(100, dtype=np.uint16)
    batches = Batches([stream], [DataSource("a", 3)], length=10, seed=0)
    for step in range(3):
        assert len(set(batches.batch(step, 10)[0].flatten().tolist())) == 100
    np.testing.assert_array_equal(batches.batch(3, 10)[0], batches.batch(0, 10)[0])


def test_until_keeps_a_file_out_of_the_end():
    streams = [np.zeros(1001, dtype=np.uint16), np.ones(1001, dtype=np.uint16)]
    batches = Batches(streams, [DataSource("a", 2), DataSource("b", 0.5, until=0.5)], length=10, seed=0)
    assert len(batches) == 250
    kinds = batches.batch(0, 250)[0][:, 0]
    assert kinds.sum() == 50
    assert kinds[-100:].sum() == 0
    assert 0 < kinds[:75].sum() < 50


@given(
    tokens=st.integers(12, 80), length=st.integers(1, 11), passes=st.floats(0.01, 4), seed=st.integers(0, 99)
)
def test_every_window_lies_inside_its_file(tokens, length, passes, seed):
    stream = np.arange(tokens, dtype=np.uint16)
    batches = Batches([stream], [DataSource("a", passes)], length, seed)
    inputs, targets = batches.batch(0, len(batches))
    np.testing.assert_array_equal(targets, (inputs + 1) % tokens)
    np.testing.assert_array_equal(np.diff(inputs, axis=1) % tokens, 1)


def test_texts_shorter_than_a_sequence_are_refused():
    with pytest.raises(InputError, match="do not fill one sequence"):
        Batches([np.zeros(10, dtype=np.uint16)], [DataSource("a")], 10, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.txt", DataSource("a.txt")),
        ("d/a.txt:3", DataSource("d/a.txt", 3)),
        ("a.txt:0.5@0.25", DataSource("a.txt", 0.5, 0.25)),
        ("C:/a.txt", DataSource("C:/a.txt")),
    ],
)
def test_sources_are_read_from_the_command_line(text, expected):
    assert DataSource.parse(text) == expected


@pytest.mark.parametrize("text", ["a:x", "a:0", "a:-1", "a:1@2", "a:1@0", "a:nan", "a:inf"])
def test_impossible_amounts_are_refused(text):
    with pytest.raises(ConfigError, match="a"):
        DataSource.parse(text)
