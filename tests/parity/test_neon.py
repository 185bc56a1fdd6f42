"""NEON with and without dot products, compiled for 64-bit ARM and run under qemu: the kernels' self-test, and
a whole golden model.

Needs aarch64-linux-gnu-g++, qemu-aarch64 and cmake; skipped where one is missing.
"""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import bitnet
from bitnet.cpu_model import _LINEARS, _NORMS, rope_tables
from bitnet.formats.checkpoint import read_checkpoint

ROOT = Path(__file__).parents[2]
TOOLS = ["aarch64-linux-gnu-g++", "qemu-aarch64", "cmake"]

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in TOOLS), reason=f"needs {', '.join(TOOLS)} to run ARM code here"
)


@pytest.fixture(scope="module")
def arm(tmp_path_factory):
    """Runs one of the stand-alone programs under the emulator."""
    build = tmp_path_factory.mktemp("arm")
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(build), "-DBITNET_PYTHON=OFF", "-DBITNET_TOOLS=ON",
        "-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    ]  # fmt: skip
    subprocess.run(configure, check=True, capture_output=True)
    subprocess.run(["cmake", "--build", str(build), "--parallel", "2"], check=True, capture_output=True)

    def run(program, *arguments, cpu="max", stdin=b""):
        command = ["qemu-aarch64", "-cpu", cpu, "-L", "/usr/aarch64-linux-gnu", str(build / program)]
        command += arguments
        return subprocess.run(command, input=stdin, check=True, capture_output=True).stdout

    return run


def model_bytes(folder, ids):
    """The golden model in the order tests/native/run_model.cpp reads it."""
    checkpoint = read_checkpoint(folder)
    config = checkpoint.config
    shape = [
        config.vocab_size, config.hidden_size, config.intermediate_size, config.num_hidden_layers,
        config.num_attention_heads, config.num_key_value_heads, config.head_dim,
        config.max_position_embeddings, len(ids),
    ]  # fmt: skip
    cos, sin = rope_tables(config)
    parts = [
        np.array(shape, np.int64),
        np.float32(config.rms_norm_eps),
        np.array(checkpoint.tensor("model.embed_tokens.weight").data),
        checkpoint.tensor("model.norm.weight").float32(),
        cos,
        sin,
    ]
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}."
        parts += [checkpoint.tensor(f"{prefix}{name}.weight").float32() for name in _NORMS.values()]
        for name in _LINEARS.values():
            linear = checkpoint.linear(prefix + name)
            parts += [linear.scale, np.array(linear.packed)]
    parts.append(np.array(ids, np.int32))
    return b"".join(part.tobytes() for part in parts)


@pytest.mark.parametrize(
    ("cpu", "isas"), [("max", ["neon_dotprod", "neon", "scalar"]), ("cortex-a53", ["neon", "scalar"])]
)
def test_every_kernel_equals_the_scalar_one(arm, cpu, isas):
    lines = [line.split() for line in arm("test_kernels", cpu=cpu).decode().splitlines()]
    assert list(dict.fromkeys(isa for isa, *_ in lines)) == isas  # best first, and none the CPU lacks
    assert all(sum(line[0] == isa for line in lines) >= 9 for isa in isas)
    assert [line for line in lines if line[-1] != "ok"] == []


@pytest.mark.parametrize("arm_isa", ["neon_dotprod", "neon"])
def test_a_whole_model_gives_the_same_bits_as_here(arm, golden, golden_forward, arm_isa):
    folder, ids = golden / "packed_offline", golden_forward["ids_safe"][0]
    model = bitnet.load_model(folder, kv_dtype="float32")
    (expected,) = model.forward([(model.new_cache(16), ids)], all_logits=True)
    stdout = arm("run_model", arm_isa, "2", stdin=model_bytes(folder, ids))
    found = np.frombuffer(stdout, np.float32).reshape(expected.shape)
    np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))
    np.testing.assert_allclose(found, golden_forward["safe_logits_packed_offline_fp32"][0], atol=1e-4, rtol=0)
