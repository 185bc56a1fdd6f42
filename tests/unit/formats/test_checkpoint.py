import json
import shutil

import numpy as np
import pytest
from safetensors import safe_open

from bitnet.config import preset
from bitnet.errors import BitnetError, ConfigError, FormatError, InputError, ResourceError
from bitnet.formats import checkpoint as module
from bitnet.formats.checkpoint import read_checkpoint, write_checkpoint
from bitnet.formats.safetensors import read_safetensors
from bitnet.formats.tensor import Tensor
from bitnet.formats.tensor_names import projections
from bitnet.quantize.packing import unpack_2bit
from bitnet.quantize.weights import ternarize


@pytest.fixture(scope="module")
def packed(golden):
    return read_checkpoint(golden / "packed_offline")


@pytest.fixture(scope="module")
def masters(golden):
    return read_checkpoint(str(golden / "bf16_online"))


@pytest.fixture
def copied(golden, tmp_path):
    return shutil.copytree(golden / "packed_offline", tmp_path / "copy")


def test_masters_and_packed_are_the_same_model(packed, masters):
    for name in projections(packed.config):
        ours, theirs = masters.linear(name), packed.linear(name)
        assert np.array_equal(ours.packed, theirs.packed), name
        assert ours.scale == pytest.approx(theirs.scale, rel=2**-8)  # the packed one is stored in bfloat16
        assert ours.bias is None


def test_packed_weights_are_handed_out_as_mapped(packed):
    linear = packed.linear("model.layers.2.mlp.up_proj")
    assert linear.packed is packed.tensor("model.layers.2.mlp.up_proj.weight").data
    assert not linear.packed.flags.writeable
    assert linear.scale == packed.tensor("model.layers.2.mlp.up_proj.weight_scale").float32()[0]
    assert isinstance(linear.scale, np.float32)


def test_bitlinear_scales_are_inverted(golden, copied, packed):
    path = copied / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["linear_class"] = "bitlinear"
    path.write_text(json.dumps(config))
    divided = read_checkpoint(copied)
    for name in projections(packed.config):
        assert divided.linear(name).scale == np.float32(1) / packed.linear(name).scale
        assert np.array_equal(divided.linear(name).packed, packed.linear(name).packed)


def test_unknown_names(packed):
    with pytest.raises(KeyError):
        packed.linear("model.layers.9.mlp.up_proj")
    with pytest.raises(KeyError):
        packed.tensor("nothing")


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
def test_masters_of_every_float(small, make_tensors, as_online, tmp_path, dtype):
    config = as_online(small)
    tensors = make_tensors(config, dtype)
    write_checkpoint(tmp_path / "model", config, tensors)
    read = read_checkpoint(tmp_path / "model")
    name = "model.layers.1.self_attn.k_proj"
    codes, scale = ternarize(tensors[f"{name}.weight"].float32())
    linear = read.linear(name)
    assert np.array_equal(unpack_2bit(linear.packed), codes)
    assert linear.scale == scale
    assert linear.bias.dtype == np.float32
    assert np.array_equal(linear.bias, tensors[f"{name}.bias"].float32())


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_round_trip(small, make_tensors, tmp_path, mode):
    config = small.with_quantization(mode)
    tensors = make_tensors(config)
    write_checkpoint(tmp_path / "new" / "model", config, tensors)
    read = read_checkpoint(tmp_path / "new" / "model")
    assert read.config == config
    assert read.directory == tmp_path / "new" / "model"
    assert read.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read.tensor(name).dtype == tensor.dtype
        assert np.array_equal(read.tensor(name).data, tensor.data)
    with safe_open(tmp_path / "new" / "model" / "model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_bitlinear_round_trip(small, make_tensors, as_bitlinear, tmp_path):
    config = as_bitlinear(small)
    write_checkpoint(tmp_path / "model", config, make_tensors(config))
    assert read_checkpoint(tmp_path / "model").config.quantization.linear_class == "bitlinear"


def test_golden_file_is_written_byte_for_byte(golden, packed, tmp_path):
    write_checkpoint(tmp_path / "model", packed.config, packed.tensors)
    written = tmp_path / "model" / "model.safetensors"
    assert written.read_bytes() == (golden / "packed_offline" / "model.safetensors").read_bytes()


def test_written_folder_holds_three_files_and_no_traces(small, make_tensors, tmp_path):
    write_checkpoint(tmp_path / "model", small, make_tensors(small), {"made_by": "a test"})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors"}
    assert json.loads((tmp_path / "model" / "generation_config.json").read_text())["eos_token_id"] == [1, 2]


def test_an_existing_folder_is_kept(small, make_tensors, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "diary").write_text("dear")
    with pytest.raises(InputError, match="exists already"):
        write_checkpoint(tmp_path / "model", small, make_tensors(small))
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["diary"]


def test_contradictory_tensors_are_never_written(small, make_tensors, tmp_path):
    tensors = make_tensors(small)
    tensors["model.norm.weight"] = Tensor.of(np.ones(3, np.float32))
    with pytest.raises(FormatError, match=r"model\.norm\.weight has shape \[3\]"):
        write_checkpoint(tmp_path / "model", small, tensors)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_broken_write_leaves_nothing(small, make_tensors, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(module, "_write_json", fail)
    expected = ResourceError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        write_checkpoint(tmp_path / "model", small, make_tensors(small))
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made(small, make_tensors, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written"):
        write_checkpoint(tmp_path / "file" / "model", small, make_tensors(small))


def test_stop_tokens_come_from_both_files(copied):
    assert read_checkpoint(copied).stop_tokens == {1}
    (copied / "generation_config.json").write_text('{"eos_token_id": [7, 8], "temperature": 0.6}')
    assert read_checkpoint(copied).stop_tokens == {1, 7, 8}
    (copied / "generation_config.json").write_text('{"eos_token_id": 9}')
    assert read_checkpoint(copied).stop_tokens == {1, 9}
    (copied / "generation_config.json").write_text("{}")
    assert read_checkpoint(copied).stop_tokens == {1}


def test_end_of_turn_of_llama_3(tmp_path):
    from dataclasses import replace

    published = replace(preset("2b4t"), eos_token_id=(128001,))
    assert module._stop_tokens(published, tmp_path) == {128001, 128009}


@pytest.mark.parametrize("eos", ["512", "-1", '"a"', "true", "[1, 512]", "[[1]]"])
def test_stop_tokens_outside_the_vocabulary(copied, eos):
    (copied / "generation_config.json").write_text(f'{{"eos_token_id": {eos}}}')
    with pytest.raises(ConfigError, match=r"generation_config\.json: eos_token_id is .*0\.\.511"):
        read_checkpoint(copied)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json: not found"),
        (lambda folder: (folder / "model.safetensors").unlink(), r"holds neither model\.safetensors"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not readable as JSON"),
        (lambda folder: (folder / "generation_config.json").write_text("[]"), "holds a list"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "not a valid safetensors file"),
    ],
)
def test_damaged_folders(copied, damage, message):
    damage(copied)
    with pytest.raises(BitnetError, match=message):
        read_checkpoint(copied)


def test_sharded_checkpoint_equals_the_whole(golden, packed, tmp_path):
    tensors = read_safetensors(golden / "packed_offline" / "model.safetensors")
    shards = {"model-00002-of-00002.safetensors": {}, "model-00001-of-00002.safetensors": {}}
    for i, (name, tensor) in enumerate(reversed(tensors.items())):
        shards[sorted(shards)[i % 2]][name] = tensor
    for file, content in shards.items():
        shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in content.items()}
        module.write_safetensors(tmp_path / file, shapes, (tensor.data for tensor in content.values()))
    index = {"weight_map": {name: file for file, content in shards.items() for name in content}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(golden / "packed_offline" / "config.json", tmp_path)
    read = read_checkpoint(tmp_path)
    for name in packed.tensors:
        assert np.array_equal(read.tensor(name).data, packed.tensor(name).data), name
