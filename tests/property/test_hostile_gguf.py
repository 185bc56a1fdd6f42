"""Whatever bytes a GGUF file holds, reading it succeeds or raises a BitnetError: no other exception, no hang,
and no memory in proportion to a number in the file."""

import struct
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bitnet.config import ModelConfig
from bitnet.errors import BitnetError, FormatError
from bitnet.formats.checkpoint import Checkpoint
from bitnet.formats.gguf.block_types import F32, I2_S, Q8_0, TQ1_0
from bitnet.formats.gguf.container import read_container
from bitnet.formats.gguf.container_writer import Int32Array, Planned, encode_header
from bitnet.formats.gguf.reader import read_gguf
from bitnet.formats.gguf.vocabulary import read_tokenizer, write_tokenizer
from bitnet.formats.gguf.writer import write_gguf
from bitnet.formats.tensor import Tensor
from bitnet.formats.tensor_names import expected_tensors

# Python's own objects for a few hundred keys and tensors, and a decoded chunk, whatever the file's size.
_FIXED = 1 << 20


def small_model():
    """A file of 60 kB with every kind of key: two layers, a vocabulary, a template."""
    config = ModelConfig(
        vocab_size=270,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=(1,),
    )
    random = np.random.default_rng(0)
    tensors = {}
    for name, item in expected_tensors(config).items():
        if item.kind == "packed":
            valid = np.array([0b00011010, 0b10010100, 0b01010101, 0b00100001], np.uint8)
            tensors[name] = Tensor.of(random.choice(valid, item.shape))
        else:
            values = random.uniform(0.5, 1.5, item.shape).astype(np.float32)
            tensors[name] = Tensor.of(values, "BF16")
    return Checkpoint(config, tensors, "small", None, frozenset((1,)))


def tokenizer_json():
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = [AddedToken(name, special=True, normalized=False) for name in ("<bos>", "<eot>")]
    trainer = trainers.BpeTrainer(
        vocab_size=266,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["the cat sat on the mat the the cat"] * 3, trainer)
    return core.to_str()


def whole_file():
    with tempfile.TemporaryDirectory() as folder:
        keys = write_tokenizer(tokenizer_json(), 270, True, "{{ messages }}", "small")
        write_gguf(Path(folder) / "model.gguf", small_model(), "i2_s", "q8_0", keys)
        return (Path(folder) / "model.gguf").read_bytes()


WHOLE = whole_file()
TINY, _ = encode_header(
    {
        "general.architecture": "bitnet",
        "n": 3,
        "f": 0.5,
        "b": True,
        "s": ["a", "bc"],
        "i": Int32Array([1, 2]),
    },
    {"a": Planned(F32, (3,)), "b.weight": Planned(I2_S, (4, 64)), "c": Planned(TQ1_0, (1, 256))},
)
TINY += bytes(32 + 96 + 64)
HEADER_END = WHOLE.index(b"output_norm.weight") + len("output_norm.weight") + 4 + 8 + 4 + 8


def survives(content, read=read_gguf):
    """Whether the content was accepted. It may take twice its size in memory, and a constant."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(content)
        refusal = None
        tracemalloc.start()
        try:
            found = read(path)
            if isinstance(found, Checkpoint):
                for tensor in found.tensors.values():
                    assert tensor.data.shape == tensor.shape
                if found.read_tokenizer is not None:
                    found.read_tokenizer()
        except BitnetError as error:
            refusal = str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak <= 2 * len(content) + _FIXED, peak
        if refusal is not None:
            assert len(refusal) < 4000
            assert str(path) in refusal
        return refusal is None


def test_the_unharmed_files_are_accepted():
    assert survives(WHOLE)
    assert survives(TINY, read_container)


@given(st.binary(max_size=200))
@example(b"GGUF")
@example(b"GGUF\3\0\0\0")
@example(b"GGUF\3\0\0\0" + b"\xff" * 16)
@example(b"GGUF\3\0\0\0" + b"\0" * 16)
def test_random_bytes(content):
    survives(content, read_container)
    survives(b"GGUF\3\0\0\0" + content, read_container)


@settings(max_examples=60)
@given(st.integers(0, len(WHOLE) - 1))
@example(HEADER_END)
@example(len(WHOLE) - 1)
def test_truncated(length):
    assert not survives(WHOLE[:length])


@given(st.integers(0, len(TINY) - 1), st.binary(min_size=1, max_size=9))
def test_overwritten_bytes_of_the_container(place, content):
    survives(TINY[:place] + content + TINY[place + len(content) :], read_container)


words = st.one_of(
    st.sampled_from([0, 1, 2, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**63 - 1, 2**63, 2**64 - 1]),
    st.integers(0, 300),
)


@given(st.integers(0, len(TINY) - 8), words, st.sampled_from("IQ"))
def test_numbers_of_the_container(place, number, size):
    width = struct.calcsize(size)
    content = struct.pack("<Q", number)[:width]
    survives(TINY[:place] + content + TINY[place + width :], read_container)


edits = st.lists(
    st.tuples(st.integers(0, HEADER_END + 200), st.sampled_from(["byte", "word", "cut", "double"]), words),
    min_size=1,
    max_size=3,
)


def edited(content, changes):
    for place, kind, number in changes:
        if kind == "byte":
            content = content[:place] + bytes([number & 255]) + content[place + 1 :]
        elif kind == "word":
            content = content[:place] + struct.pack("<Q", number) + content[place + 8 :]
        elif kind == "cut":
            content = content[:place] + content[place + number % 64 :]
        else:
            content = content[: place + number % 64] + content[place:]
    return content


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(edits)
def test_edited_models(changes):
    survives(edited(WHOLE, changes))


@settings(max_examples=30)
@given(st.integers(HEADER_END, len(WHOLE) - 1), st.integers(0, 255))
def test_edited_data(place, byte):
    survives(WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :])


texts = st.text(max_size=4) | st.sampled_from(
    ["a", "b", "ab", "a b", "<x>", "Ġ", " ", ":", "$A", "a:1", "bos"]
)
vocabulary_keys = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["gpt2", "llama", "none", ""]),
        "pre": st.sampled_from(["llama-bpe", "gpt-2", "x"]),
        "tokens": st.lists(texts, max_size=6) | st.integers(0, 9),
        "merges": st.lists(texts | st.tuples(texts, texts).map(" ".join), max_size=6) | st.booleans(),
        "token_type": st.lists(st.integers(-1, 7), max_size=6).map(Int32Array) | st.integers(0, 9),
        "bos_token_id": st.integers(0, 9),
        "eos_token_id": st.integers(0, 9) | texts,
        "add_bos_token": st.booleans() | st.integers(0, 9),
    },
)


@given(vocabulary_keys, st.booleans())
@example({"tokens": [":"], "merges": [], "bos_token_id": 0}, True)  # a token's text that means something
@example({"tokens": ["$A"], "merges": [], "bos_token_id": 0, "token_type": Int32Array([3])}, True)
@example({"tokens": ["a"], "merges": [], "bos_token_id": 0, "token_type": Int32Array([5])}, True)
@example({"tokens": ["a", "ab"], "merges": ["ab ab"]}, True)  # longer than any token: the library panics
def test_random_vocabularies(keys, sound_model):
    """Read from a file that holds nothing else; a usable one is taken by the tokenizers library."""
    from bitnet.tokenizer import Tokenizer

    keys = ({"model": "gpt2"} | keys) if sound_model else keys
    header, _ = encode_header({f"tokenizer.ggml.{key}": value for key, value in keys.items()}, {})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(header)
        try:
            files = read_tokenizer(read_container(path).metadata, small_model().config)
            if files is not None:
                Tokenizer.from_json(files.tokenizer_json, files.settings).encode("ab <x> a")
        except BitnetError:
            pass


def test_a_huge_header_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k")
        file.write(struct.pack("<IIQ", 9, 8, 1 << 29))  # half a thousand million empty strings
        file.truncate(1 << 33)  # sparse: it takes no disk
    with pytest.raises(FormatError, match="strings in 'k', more than"):
        read_container(path)


def test_a_huge_tensor_is_mapped_and_not_loaded(tmp_path):
    path = tmp_path / "model.gguf"
    header, size = encode_header({}, {"x": Planned(F32, (1 << 33,))})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(size)
    tracemalloc.start()
    raw = read_container(path).tensors["x"].raw
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert raw.shape == (1 << 35,)
    assert not raw[-4096:].any()
    assert peak < _FIXED


def test_decoding_takes_no_more_than_the_result(tmp_path):
    """One matrix of 4 M weights in rows of any width, and an embedding as large."""
    from bitnet.formats.gguf.tensors import QuantizedTensor, TernaryTensor

    path = tmp_path / "model.gguf"
    plans = {"codes": Planned(I2_S, (1024, 4092)), "floats": Planned(Q8_0, (1024, 4096))}
    header, size = encode_header({}, plans)
    path.write_bytes(header + np.full(size - len(header), 0x15, np.uint8).tobytes())
    stored = read_container(path).tensors
    tracemalloc.start()
    for tensor, result in (
        (TernaryTensor(stored["codes"]), 1 << 20),
        (QuantizedTensor(stored["floats"]), 1 << 24),
    ):
        tracemalloc.reset_peak()
        assert tensor.data.nbytes <= result
        assert tensor.find_non_finite() is None if tensor.dtype == "F32" else True
        # the result, and a chunk of a few MB
        assert tracemalloc.get_traced_memory()[1] < result + (12 << 20)
    tracemalloc.stop()
