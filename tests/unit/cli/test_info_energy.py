"""`bitnet info --energy`: the library's figures for a model's shape, from files or a preset."""

import json

import pytest

from bitnet.config import preset
from bitnet.energy import TERNARY_BITS, joules, kv_cache_bytes, operations, weight_bytes
from bitnet.formats.checkpoint import read_checkpoint


def test_json_of_a_checkpoint(bitnet, golden):
    summary = json.loads(bitnet("info", golden / "packed_offline", "--energy", "--json").out)
    config = read_checkpoint(golden / "packed_offline").config
    assert summary["tokens"] == 512
    for node in ("7nm", "45nm"):
        for weights in ("fp16", "bitnet"):
            energy = joules(operations(config, 512, weights), node)
            assert summary["joules"][node][weights] == {
                "add": energy.add,
                "mul": energy.mul,
                "total": energy.total,
            }
    assert [part["part"] for part in summary["operations"]["bitnet"]] == [
        "projections",
        "scales",
        "attention",
        "head",
    ]
    assert summary["weight_bytes"]["1.58"]["projections"] == weight_bytes(config, TERNARY_BITS).projections
    assert summary["kv_cache_bytes"] == {
        str(bits): kv_cache_bytes(config, config.max_position_embeddings, bits) for bits in (16, 8, 4, 3)
    }


def test_table_of_a_preset(bitnet):
    out = bitnet("info", "--preset", "2b4t", "--energy").out
    (row,) = [line for line in out.splitlines() if line.startswith("7 nm  BitNet")]
    assert " ".join(row.split()) == "7 nm BitNet 13.88 mJ 13.93 mJ 27.8 mJ 54.3 µJ 19.9"
    assert "weights at 2 bits" in out
    assert "keys and values at 3 bits, 4,096 tokens" in out


def test_a_preset_and_its_synthetic_checkpoint_agree(bitnet, tmp_path):
    assert bitnet("synthesize", "--preset", "stories", "--out", tmp_path / "stories").code == 0
    files = json.loads(bitnet("info", tmp_path / "stories", "--energy", "--json").out)
    shape = json.loads(bitnet("info", "--preset", "stories", "--energy", "--json").out)
    assert files.pop("model") == str(tmp_path / "stories")
    assert shape.pop("model") == "preset stories"
    assert files == shape
    assert shape["context"] == preset("stories").max_position_embeddings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "stories"], "add --energy"),
        (["--preset", "stories", "--energy", "somewhere"], "exclude each other"),
        (["--preset", "3b", "--energy"], "unknown preset '3b'; known are"),
    ],
)
def test_refusals(bitnet, arguments, message):
    assert message in bitnet("info", *arguments).refusal
