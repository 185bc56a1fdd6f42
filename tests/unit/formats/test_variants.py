"""Checkpoints of every member of the line: written, read, converted; refused where nothing can hold them."""

import json
from dataclasses import replace

import numpy as np
import pytest

from bitnet.cli.convert import describe
from bitnet.cli.info import info as print_info
from bitnet.cli.info import summarize
from bitnet.config import ModelConfig
from bitnet.convert import convert
from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats.checkpoint import read_checkpoint, write_checkpoint
from bitnet.formats.synthesize import synthesize
from bitnet.formats.tensor_names import count_parameters, expected_tensors, projections
from bitnet.quant_config import VARIANTS, QuantConfig
from bitnet.quantize.packing import unpack

SCALES = {
    "rows": QuantConfig(scales="row"),
    "groups": QuantConfig(scales="group", groups=2),
    "binary rows": QuantConfig(weights="binary", scales="row", norms="linear"),
    "binary groups": QuantConfig(weights="binary", scales="group", groups=4, norms="linear"),
    "norm before and inside": QuantConfig(norms="pre-linear"),
}
EVERY = VARIANTS | SCALES
O_PROJ, K_PROJ = "model.layers.1.self_attn.o_proj", "model.layers.0.self_attn.k_proj"


def shape(quantization):
    return ModelConfig(
        vocab_size=20,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=16,
        head_dim=16,
        quantization=quantization,
    )


@pytest.fixture(params=EVERY, scope="module")
def folder(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("variant") / "packed"
    synthesize(shape(EVERY[request.param]), path, seed=3)
    return path


def test_a_packed_folder_says_what_it_is(folder):
    checkpoint = read_checkpoint(folder)
    assert checkpoint.config == shape(checkpoint.config.quantization)
    for name, (rows, columns) in projections(checkpoint.config).items():
        linear = checkpoint.linear(name)
        assert linear.codes().shape == (rows, columns)
        assert linear.scales.shape == (linear.recipe.scales,)
        assert (linear.norm_weight is not None) == checkpoint.config.quantization.linear_norms
        assert set(np.unique(linear.codes())) == (
            {-1, 1} if linear.recipe.weights == "binary" else {-1, 0, 1}
        )


def test_masters_made_of_codes_give_them_back(folder, tmp_path):
    before = read_checkpoint(folder)
    convert(folder, tmp_path / "bf16", "bf16")
    summary = convert(tmp_path / "bf16", tmp_path / "again", "packed")
    masters, after = read_checkpoint(tmp_path / "bf16"), read_checkpoint(tmp_path / "again")
    assert summary.ternary_bits == 8 / before.config.quantization.codes_a_byte
    for name in projections(before.config):
        wanted = before.linear(name)
        for linear in (masters.linear(name), after.linear(name)):
            assert np.array_equal(linear.packed, wanted.packed)
            np.testing.assert_allclose(
                linear.scales, wanted.scales, rtol=2e-3
            )  # few weights share a mean here
            assert linear.recipe == wanted.recipe


def test_info_counts_weights(folder):
    checkpoint = read_checkpoint(folder)
    summary = summarize(checkpoint)
    assert summary["parameters"] == count_parameters(checkpoint.config)
    assert summary["bits_per_weight"]["ternary"] == 8 / checkpoint.config.quantization.codes_a_byte
    (row,) = [row for row in summary["tensors"] if row["name"] == f"{O_PROJ}.weight"]
    assert row["sample"] == checkpoint.linear(O_PROJ).codes()[0, :8].tolist()
    assert row["shape"] == [24, 48]


def test_binary_weights_are_called_binary(tmp_path, capsys):
    synthesize(shape(VARIANTS["w1a8"]), tmp_path / "packed")
    text = describe(convert(tmp_path / "packed", tmp_path / "bf16", "bf16"))
    text += describe(convert(tmp_path / "bf16", tmp_path / "again", "packed"))
    print_info(str(tmp_path / "again"))
    text += capsys.readouterr().out
    assert "1 binary," in text
    assert "rounded to binary" in text
    assert "1.00 binary, " in text
    assert " ternary" not in text


@pytest.mark.parametrize("name", [name for name in EVERY if name != "b1.58"])
def test_gguf_has_no_place_for_it(name, tmp_path):
    synthesize(shape(EVERY[name]), tmp_path / "packed")
    with pytest.raises(UnsupportedError, match="GGUF has no place for "):
        convert(tmp_path / "packed", tmp_path / "model.gguf", "gguf-i2_s")
    assert not (tmp_path / "model.gguf").exists()


def test_transformers_refuses_what_it_would_compute_otherwise():
    kinds = {name: shape(value).to_dict()["model_type"] for name, value in EVERY.items() if name != "pre"}
    assert kinds.pop("b1.58") == "bitnet"
    assert set(kinds.values()) == {"bitnet-variant"}
    llama = replace(shape(VARIANTS["pre"]), hidden_act="silu").to_dict()
    assert (llama["model_type"], llama["architectures"]) == ("llama", ["LlamaForCausalLM"])


def test_as_falcon_e_and_hf1bitllm_write_it(tmp_path):
    """A llama without sub-norms, dividing scales, and no word of norms."""
    synthesize(replace(shape(VARIANTS["pre"]), hidden_act="silu"), tmp_path / "ours")
    tensors = dict(read_checkpoint(tmp_path / "ours").tensors)
    assert not [name for name in tensors if "sub_norm" in name]
    path = tmp_path / "ours" / "config.json"
    values = json.loads(path.read_text())
    values["quantization_config"] = {"quant_method": "bitnet", "modules_to_not_convert": None}
    path.write_text(json.dumps(values | {"use_cache": True, "mlp_bias": False}))
    read = read_checkpoint(tmp_path / "ours")
    assert read.config.quantization == QuantConfig(linear_class="bitlinear", norms="pre")
    stored = tensors[f"{O_PROJ}.weight_scale"].float32()
    assert np.array_equal(read.linear(O_PROJ).scales, np.float32(1) / stored)


def test_use_rms_norm_of_a_llama_is_a_norm_inside():
    values = replace(shape(QuantConfig()), hidden_act="silu").to_dict() | {"model_type": "llama"}
    values["quantization_config"] = {"quant_method": "bitnet", "use_rms_norm": True, "rms_norm_eps": 1e-4}
    quantization = ModelConfig.from_dict(values).quantization
    assert (quantization.norms, quantization.norm_kind, quantization.norm_eps) == ("pre-linear", "rms", 1e-4)


@pytest.mark.parametrize("bad", [0.0, -1.0, np.inf, np.nan])
def test_one_bad_scale_of_many(tmp_path, bad):
    config = shape(SCALES["rows"])
    synthesize(config, tmp_path / "model")
    tensors = dict(read_checkpoint(tmp_path / "model").tensors)
    name = f"{K_PROJ}.weight_scale"
    values = tensors[name].float32()
    values[7] = bad
    tensors[name] = type(tensors[name]).of(values)
    with pytest.raises(FormatError, match=rf"{name} is .*a scale is a positive finite number"):
        write_checkpoint(tmp_path / "bad", config, tensors)


def test_one_scale_is_not_many(tmp_path):
    config = shape(SCALES["rows"])
    synthesize(config, tmp_path / "model")
    tensors = dict(read_checkpoint(tmp_path / "model").tensors)
    name = f"{K_PROJ}.weight_scale"
    tensors[name] = type(tensors[name]).of(tensors[name].float32()[:1])
    with pytest.raises(FormatError, match=rf"{name} has shape \[1\], but the configuration asks for \[16\]"):
        write_checkpoint(tmp_path / "bad", config, tensors)


def test_equal_codes_have_no_binary_masters(tmp_path):
    config = shape(VARIANTS["w1a8"])
    synthesize(config, tmp_path / "model")
    tensors = dict(read_checkpoint(tmp_path / "model").tensors)
    tensors[f"{O_PROJ}.weight"].data.setflags(write=False)
    tensors[f"{O_PROJ}.weight"] = type(tensors[f"{O_PROJ}.weight"]).of(np.full((3, 48), 255, np.uint8))
    write_checkpoint(tmp_path / "equal", config, tensors)
    assert (unpack(np.full((3, 48), 255, np.uint8), "binary") == 1).all()
    with pytest.raises(UnsupportedError, match=r"o_proj: all codes of a block are equal"):
        convert(tmp_path / "equal", tmp_path / "bf16", "bf16")
    assert not (tmp_path / "bf16").exists()


def test_names_of_norms_follow_their_places():
    def norms(**kind):
        expected = expected_tensors(shape(QuantConfig(**kind)))
        return {
            name.split(".", 3)[3] for name, item in expected.items() if item.kind == "norm" and ".0." in name
        }

    pre = {"input_layernorm.weight", "post_attention_layernorm.weight"}
    sub = {"self_attn.attn_sub_norm.weight", "mlp.ffn_sub_norm.weight"}
    inside = {f"self_attn.{x}_proj.rms_norm.weight" for x in "qkvo"}
    inside |= {f"mlp.{x}_proj.rms_norm.weight" for x in ("gate", "up", "down")}
    assert norms() == pre | sub
    assert norms(norms="pre") == pre
    assert norms(norms="linear") == inside
    assert norms(norms="pre-linear") == pre | inside
    layer = norms(norms="linear", norm_kind="layer")
    assert layer == {name.replace("rms_norm", "layer_norm") for name in inside}
