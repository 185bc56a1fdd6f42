"""Whatever bytes the files of a checkpoint folder hold, reading it succeeds or raises a BitnetError: no other
exception, no hang, and no memory in proportion to a number in a file."""

import json
import random
import tempfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet.config import ModelConfig
from bitnet.errors import BitnetError, FormatError
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.formats.gguf import read_gguf  # noqa: F401  # imported by the first read: no memory of that one
from bitnet.formats.safetensors import encode_header, read_checkpoint_files
from bitnet.formats.tensor import NUMPY_DTYPES, Tensor
from bitnet.formats.tensor_names import expected_tensors, projections
from bitnet.quant_config import QuantConfig

# A folder as one string of bytes, so that a fuzzer can cut across files: these, in this order. An empty part
# is a file that is not there.
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "a.safetensors",
    "b.safetensors",
)
SEPARATOR = b"\n--8<--\n"

# Python's own objects for a few hundred keys and tensors, whatever the files' size.
_FIXED = 1 << 20
_LONGEST_MESSAGE = 4000  # characters; a line that a user can still read


def survives(content):
    """Whether the folder was accepted. It may take twice its size in memory, and a constant."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, part in zip(FILES, content.split(SEPARATOR), strict=False):
            if part:
                (folder / file).write_bytes(part)
        refusals = []
        tracemalloc.start()
        try:
            for read in (read_checkpoint_files, read_checkpoint):
                try:
                    found = read(folder)
                except BitnetError as error:
                    refusals.append(str(error))
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak <= 2 * len(content) + _FIXED, peak
        for refusal in refusals:
            assert len(refusal) < _LONGEST_MESSAGE
            assert str(folder) in refusal
            refusal.encode()
        if refusals:
            return False
        for tensor in found.tensors.values():
            assert tensor.data.shape == tensor.shape
            assert tensor.data.dtype == NUMPY_DTYPES[tensor.dtype]
            tensor.data.tobytes()
        for layer in projections(found.config):
            found.linear(layer)
        return True


def small_checkpoint(**changes):
    """Configuration and tensors of a model of 2 kB."""
    values = {
        "vocab_size": 12,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 16,
        "bos_token_id": 0,
        "eos_token_id": (1, 2),
    }
    config = ModelConfig(**(values | changes))
    generator = np.random.default_rng(0)
    tensors = {}
    for name, item in expected_tensors(config).items():
        if item.kind == "packed":
            tensors[name] = Tensor.of(generator.choice(np.array([0x1A, 0x94, 0x55], np.uint8), item.shape))
        else:
            numbers = generator.uniform(0.5, 1.5, item.shape).astype(np.float32)
            tensors[name] = Tensor.of(numbers, None if item.kind == "scale" else "BF16")
    return config, tensors


def file_of(tensors):
    header, _ = encode_header({name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()})
    return header + b"".join(tensor.data.tobytes() for tensor in tensors.values())


def folder_of(config, tensors, sharded):
    generation = json.dumps({"bos_token_id": 0, "eos_token_id": [1, 3]}).encode()
    start = [json.dumps(config.to_dict()).encode(), generation]
    if not sharded:
        return SEPARATOR.join([*start, file_of(tensors)])
    names = list(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    files = [file_of({name: tensors[name] for name in held}) for held in shards.values()]
    return SEPARATOR.join([*start, b"", json.dumps(index).encode(), *files])


def whole_folders():
    """Sound folders of every kind."""
    masters = QuantConfig("autobitlinear", "online")
    divides = QuantConfig("bitlinear", "offline")
    variants = [{}, {"quantization": masters}, {"quantization": divides, "tie_word_embeddings": False}]
    variants.append({"attention_bias": True, "mlp_bias": True, "hidden_act": "silu"})
    return [folder_of(*small_checkpoint(**changes), sharded) for changes in variants for sharded in (0, 1)]


WHOLE = whole_folders()

_NUMBERS = (0, -1, 1, 3, 8, 0.5, 1e308, 2**31, 2**32, 2**63, 2**64, 10**30, 10**4000, float("nan"))
_VALUES = (
    *_NUMBERS,
    None,
    True,
    "",
    "x",
    "U8",
    "F32",
    "F64",
    "BOOL",
    [],
    [0],
    {},
    "\ud800",
    "../a.safetensors",
)


# What fuzzing found, a value of the file in a message as long as the file, and its kin: numbers whose product
# Python refuses to print, and a name that no terminal can.
FOUND = (
    ("bos_token_id", 10**4000),
    ("pad_token_id", "x" * 5000),
    ("num_attention_heads", 10**4000),
    ("unknown\ud800", 1),
    ("hidden_act", "\udfff"),
)


def edit_json(value, choose):
    """A JSON value with one place changed: replaced, removed, repeated, renamed, or nested deeper."""
    if isinstance(value, dict | list) and value and choose.random() < 0.9:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = choose.choice(keys)
        copied = value.copy()
        kind = choose.randrange(10)
        if kind == 0:
            del copied[key]
        elif kind == 1 and isinstance(value, dict):
            copied[choose.choice(keys) + choose.choice(["", ".weight", "\udc80"])] = copied.pop(key)
        elif kind == 2:
            other = choose.choice(keys)
            copied[key], copied[other] = copied[other], copied[key]
        elif kind == 3 and isinstance(value, list):
            copied *= choose.choice([2, 40])
        else:
            copied[key] = edit_json(value[key], choose)
        return copied
    if isinstance(value, int) and choose.random() < 0.5:
        return value + choose.choice([-8, -4, -1, 1, 4, 8])
    return choose.choice(_VALUES)


def edit_part(part, choose):
    """A file with its JSON edited; that of a safetensors file stands behind its length."""
    start = 0 if part[:1] == b"{" else 8
    end = len(part) if start == 0 else 8 + int.from_bytes(part[:8], "little")
    try:
        text = json.dumps(edit_json(json.loads(part[start:end]), choose)).encode()
    except (ValueError, RecursionError):
        return part
    return text if start == 0 else len(text).to_bytes(8, "little") + text + part[end:]


def edit_folder(content, choose):
    """A folder with one of its files edited."""
    parts = content.split(SEPARATOR)
    place = choose.randrange(len(parts))
    parts[place] = edit_part(parts[place], choose)
    return SEPARATOR.join(parts)


@pytest.mark.parametrize("content", WHOLE)
def test_the_unharmed_folders_are_accepted(content):
    assert survives(content)


@pytest.mark.parametrize(("key", "value"), FOUND)
@pytest.mark.parametrize("content", WHOLE[:2])
def test_what_fuzzing_found(content, key, value):
    config, *files = content.split(SEPARATOR)
    config = json.dumps(json.loads(config) | {key: value}).encode()
    assert not survives(SEPARATOR.join([config, *files]))


def test_a_number_of_many_digits_in_every_file():
    for content in WHOLE[:2]:
        for i, part in enumerate(parts := content.split(SEPARATOR)):
            if part:
                damaged = part.replace(b":", b": " + b"9" * 4200 + b', "":', 1)
                assert not survives(SEPARATOR.join([*parts[:i], damaged, *parts[i + 1 :]]))


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json"])
def test_text_that_takes_many_times_its_size_is_refused_unread(tmp_path, name):
    """Empty tensors, or empty lists: 20 bytes of memory and more for each of the file."""
    if name == "model.safetensors":
        entry = '"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
        text = "{" + ",".join(entry % i for i in range(90_000)) + "}"
        content = len(text).to_bytes(8, "little") + text.encode() + b" "
    else:
        content = ('{"weight_map":{"x":[' + ",".join(["[]"] * 1_500_000) + "]}}").encode()
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    with pytest.raises(FormatError, match=r"more than the 4,194,304|larger than 4,194,304"):
        read_checkpoint_files(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < _FIXED


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(WHOLE), st.integers(0, 2**32), st.integers(1, 3))
def test_edited_json(content, seed, times):
    choose = random.Random(seed)
    for _ in range(times):
        content = edit_folder(content, choose)
    survives(content)


@settings(max_examples=100)
@given(st.sampled_from(WHOLE), st.integers(0, 2**20), st.binary(max_size=9), st.integers(0, 20))
def test_overwritten_bytes(content, place, replacement, removed):
    place %= len(content)
    survives(content[:place] + replacement + content[place + removed :])
