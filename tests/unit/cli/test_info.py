"""`bitnet info`: its numbers are counted from the tensors."""

import json

import numpy as np
import pytest

from bitnet.cli.info import summarize
from bitnet.config import ModelConfig, preset
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.formats.synthesize import synthesize
from bitnet.quant_config import QuantConfig
from bitnet.quantize.packing import unpack_2bit


@pytest.mark.parametrize("name", ["packed_offline", "bf16_online"])
def test_counts(bitnet, golden, name):
    summary = json.loads(bitnet("info", golden / name, "--json").out)
    checkpoint = read_checkpoint(golden / name)
    rows = {row["name"]: row for row in summary["tensors"]}
    assert summary["parameters"] == 1_806_336
    assert summary["parameters"] == sum(row["parameters"] for row in summary["tensors"])
    assert summary["file_bytes"] == (golden / name / "model.safetensors").stat().st_size
    assert summary["bits_per_weight"]["ternary"] == (2 if name == "packed_offline" else 16)
    assert summary["config"] == checkpoint.config.to_dict()

    projection = "model.layers.2.mlp.down_proj"
    linear = checkpoint.linear(projection)
    codes = unpack_2bit(linear.packed)
    row = rows[f"{projection}.weight"]
    assert row["shape"] == [256, 512]
    assert row["zero_fraction"] == np.mean(codes == 0)
    assert row["sample"] == codes[0, :8].tolist()
    assert row["scale"] == linear.scale

    norm = rows["model.norm.weight"]
    assert norm["shape"] == [256]
    np.testing.assert_allclose(
        norm["sample"], checkpoint.tensor("model.norm.weight").float32()[:8], rtol=1e-5
    )
    assert norm["zero_fraction"] == 0


def test_table_names_every_tensor_in_reading_order(bitnet, golden):
    out = bitnet("info", golden / "packed_offline").out
    names = [line.split()[0] for line in out.splitlines() if line.startswith("model.")]
    expected = [name for name in read_checkpoint(golden / "packed_offline").tensors if "_scale" not in name]
    assert sorted(names) == sorted(expected)
    assert names[0] == "model.embed_tokens.weight"
    assert "1,806,336 (1,671,168 ternary, 135,168 other)" in out


def test_layer_ten_comes_after_layer_nine(bitnet, tmp_path):
    config = preset("stories")
    synthesize(config.__class__(**{**vars(config), "num_hidden_layers": 11}), tmp_path / "deep")
    rows = json.loads(bitnet("info", tmp_path / "deep", "--json").out)["tensors"]
    layers = [int(row["name"].split(".")[2]) for row in rows if ".layers." in row["name"]]
    assert layers == sorted(layers)


def test_counts_both_zeros(bitnet, broken):
    path = broken / "model.safetensors"
    data = bytearray(path.read_bytes())
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    start, end = header["model.norm.weight"]["data_offsets"]
    offset = 8 + int.from_bytes(data[:8], "little") + start
    data[offset : offset + 4] = bytes([0x00, 0x00, 0x00, 0x80])  # +0 and -0 in bfloat16
    path.write_bytes(data)
    rows = json.loads(bitnet("info", broken, "--json").out)["tensors"]
    (norm,) = [row for row in rows if row["name"] == "model.norm.weight"]
    assert norm["zero_fraction"] == 2 / ((end - start) // 2)


@pytest.mark.parametrize(("bits", "expected"), [(16, 512), (8, 264), (4, 136), (3, 104)])
def test_memory_of_keys_and_values_follows_the_configuration(tmp_path, bits, expected):
    shape = {"vocab_size": 16, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 128}
    quantization = QuantConfig("autobitlinear", kv_bits=bits)
    config = ModelConfig(**shape, **heads, max_position_embeddings=100, quantization=quantization)
    synthesize(config, tmp_path / "model", mode=quantization.quantization_mode)
    memory = summarize(read_checkpoint(tmp_path / "model"))["memory_bytes"]
    assert memory["kv_cache_per_token"] == 2 * expected
    assert memory["kv_cache_full_context"] == 2 * expected * 100
