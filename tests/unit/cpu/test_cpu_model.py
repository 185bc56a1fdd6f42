"""What the cpu engine refuses, and that a refusal changes nothing."""

import json
import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest

import bitnet
from bitnet.errors import InputError


@pytest.fixture(scope="module")
def model(golden):
    return bitnet.load_model(golden / "packed_offline")


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        ([], "at least one token"),
        ([[1, 2]], "flat list"),
        ([512], "token id 512 is outside 0..511"),
        ([3, -1], "token id -1 is outside"),
        ([2**40], "is outside"),
        ([10**30], "whole numbers"),
        (["a"], "whole numbers"),
        ([1.7], "whole numbers"),
    ],
)
def test_bad_ids(model, ids, words):
    cache = model.new_cache(8)
    with pytest.raises(InputError, match=words):
        model.forward([(cache, ids)])
    assert cache.length == 0


def test_a_full_cache(model):
    cache = model.new_cache(4)
    model.forward([(cache, [1, 2, 3])])
    with pytest.raises(InputError, match="2 new tokens do not fit: the cache holds 3 of 4"):
        model.forward([(cache, [1, 2])])
    assert cache.length == 3


def test_one_cache_twice(model):
    cache = model.new_cache(8)
    with pytest.raises(InputError, match="the same cache twice"):
        model.forward([(cache, [1]), (cache, [2])])
    assert cache.length == 0


def test_a_cache_of_another_model(model):
    foreign = bitnet.load_model(None).new_cache(8)
    with pytest.raises(InputError, match="another model"):
        model.forward([(foreign, [1])])


def test_a_cache_for_more_positions_than_the_model_knows(model, golden, tmp_path):
    """Its rotary tables end there."""
    folder = shutil.copytree(golden / "packed_offline", tmp_path / "short")
    config = json.loads((folder / "config.json").read_text()) | {"max_position_embeddings": 64}
    (folder / "config.json").write_text(json.dumps(config))
    short = bitnet.load_model(folder)
    cache = model.new_cache(100)
    with pytest.raises(InputError, match="another model"):
        short.forward([(cache, [1] * 100)])
    assert cache.length == 0
    short.forward([(model.new_cache(64), [1] * 64)])


def test_a_cache_of_another_kind(model):
    with pytest.raises(InputError, match="new_cache"):
        model.forward([(object(), [1])])


def test_an_empty_batch(model):
    assert model.forward([]) == []


@pytest.mark.parametrize("max_tokens", [0, -1, 4097])
def test_cache_sizes(model, max_tokens):
    with pytest.raises(InputError, match=r"1\.\.4096"):
        model.new_cache(max_tokens)


@pytest.mark.parametrize("length", [-1, 3])
def test_truncating_too_far(model, length):
    cache = model.new_cache(8)
    model.forward([(cache, [1, 2])])
    with pytest.raises(InputError, match="holds 2"):
        cache.truncate(length)


def test_unknown_isa(golden, monkeypatch):
    with pytest.raises(InputError, match=r"'avx9000' .* scalar"):
        bitnet.load_model(golden / "packed_offline", isa="avx9000")
    monkeypatch.setenv("BITNET_ISA", "mmx")
    with pytest.raises(InputError, match="'mmx'"):
        bitnet.load_model(golden / "packed_offline")
    monkeypatch.setenv("BITNET_ISA", "scalar")
    assert bitnet.load_model(golden / "packed_offline").isa == "scalar"


def test_threads(golden, monkeypatch):
    monkeypatch.setenv("BITNET_THREADS", "3")
    assert bitnet.load_model(golden / "packed_offline").threads == 3
    assert bitnet.load_model(golden / "packed_offline", threads=1).threads == 1
    for value in ("0", "two", "-1"):
        monkeypatch.setenv("BITNET_THREADS", value)
        with pytest.raises(InputError, match="BITNET_THREADS"):
            bitnet.load_model(golden / "packed_offline")
    with pytest.raises(InputError, match="threads"):
        bitnet.load_model(golden / "packed_offline", threads=100000)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_threads_that_the_system_does_not_give():
    """A thread wants megabytes of addresses for its stack: 1,000 of them do not fit the limit."""
    program = """
import resource
from bitnet import _core
_core.BitPool(2, "")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28),) * 2)
try:
    _core.BitPool(1000, "")
except ValueError as error:
    print(error)
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "of 1000 threads; ask for fewer" in found.stdout


def test_unknown_kv_dtype(golden):
    with pytest.raises(InputError, match="kv_dtype is 'int2'; use auto, float16"):
        bitnet.load_model(golden / "packed_offline", kv_dtype="int2")


def test_callers_from_several_threads_get_their_own_results(model):
    prompts = [[token, token + 1, token + 2] for token in range(1, 9)]
    expected = [model.forward([(model.new_cache(8), ids)])[0] for ids in prompts]
    found = [None] * len(prompts)

    def work(index):
        found[index] = model.forward([(model.new_cache(8), prompts[index])])[0]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_goes_on_with_threads_of_its_own(golden):
    """As multiprocessing starts its workers; the parent's threads are not in them."""
    program = """
import os, signal, sys, warnings
import numpy as np
import bitnet
warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of forks beside threads
model = bitnet.load_model(sys.argv[1], threads=3)
def run():
    return model.forward([(model.new_cache(80), list(range(80)))])[0]
expected = run()
child = os.fork()
if child == 0:
    signal.alarm(60)
    same = np.array_equal(run(), expected) and model.threads == 3
    grandchild = os.fork()
    if grandchild == 0:
        signal.alarm(60)
        same = np.array_equal(run(), expected)
    elif os.waitpid(grandchild, 0)[1] != 0:
        same = False
    del model  # waits for its own threads
    os._exit(0 if same else 1)
assert os.waitpid(child, 0)[1] == 0
assert np.array_equal(run(), expected)
"""
    found = subprocess.run(
        [sys.executable, "-c", program, str(golden / "packed_offline")], capture_output=True, text=True
    )
    assert found.returncode == 0, found.stderr


def test_not_finite_weights_reach_the_logits(golden, tmp_path):
    """An infinite activation must become NaN logits, never plausible numbers."""
    from bitnet.cpu_model import CpuModel
    from bitnet.formats.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(golden / "packed_offline")
    tensors = dict(checkpoint.tensors)
    norm = tensors["model.layers.1.input_layernorm.weight"]
    broken = norm.data.copy()
    broken[3] = 0x7F80  # +inf
    tensors["model.layers.1.input_layernorm.weight"] = type(norm)(norm.dtype, norm.shape, broken)
    damaged = type(checkpoint)(checkpoint.config, tensors, "damaged", None, frozenset())
    model = CpuModel.from_checkpoint(damaged, None)
    (logits,) = model.forward([(model.new_cache(4), [1, 2])])
    assert np.isnan(logits).all()


def test_profile_is_printed_when_asked_for(golden, monkeypatch, capsys):
    monkeypatch.setenv("BITNET_PROFILE", "1")
    model = bitnet.load_model(golden / "packed_offline")
    model.forward([(model.new_cache(4), [1, 2])])
    assert all(seconds > 0 for seconds in model.profile.values())
    del model
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in lines] == ["q/k/v", "attention", "output", "gate/up", "down", "head"]
