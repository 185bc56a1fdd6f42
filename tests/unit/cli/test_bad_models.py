"""Models that must be refused, by every verb that opens one, with one line that names the culprit."""

import json
import os
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models

VERBS = {"info": (), "generate": ("--ids", "1", "--max-tokens", "1", "--model"), "chat": ("--model",)}
PROJECTION = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(params=VERBS)
def refusal(request, bitnet):
    """The line with which a verb refuses a folder."""
    return lambda folder: bitnet(request.param, *VERBS[request.param], folder).refusal


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_header(folder, change):
    """Rewrite the safetensors header with `change(header)` applied; the data stays."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def overwrite(folder, tensor, content):
    """Put bytes at the start of a tensor."""
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start = 8 + length + json.loads(data[8 : 8 + length])[tensor]["data_offsets"][0]
    data[start : start + len(content)] = content
    path.write_bytes(data)


def test_no_such_folder(refusal, tmp_path):
    assert "nowhere" in refusal(tmp_path / "nowhere")


def test_a_file_instead_of_a_folder(refusal, broken):
    assert "is a file" in refusal(broken / "config.json")


def test_no_config(refusal, broken):
    (broken / "config.json").unlink()
    assert "config.json" in refusal(broken)


def test_no_weights(refusal, broken):
    (broken / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(broken)


def test_truncated_weights(refusal, broken):
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors" in refusal(broken)


def test_header_beyond_the_file(refusal, broken):
    path = broken / "model.safetensors"
    path.write_bytes((10**9).to_bytes(8, "little") + path.read_bytes()[8:])
    assert "model.safetensors" in refusal(broken)


def test_wrong_dtype(refusal, broken):
    edit_header(broken, lambda header: header[PROJECTION].update(dtype="I8"))
    assert PROJECTION in refusal(broken)


def test_wrong_shape(refusal, broken):
    edit_header(broken, lambda header: header[PROJECTION].update(shape=header[PROJECTION]["shape"][::-1]))
    assert PROJECTION in refusal(broken)


def test_code_three(refusal, broken):
    overwrite(broken, PROJECTION, b"\x03")
    assert PROJECTION in refusal(broken)


@pytest.mark.parametrize(
    "bits", [b"\xc0\x7f", b"\x80\x7f", b"\x00\x00", b"\x80\xbf"], ids=["nan", "inf", "0", "-1"]
)
def test_impossible_scale(refusal, broken, bits):
    overwrite(broken, f"{PROJECTION}_scale", bits)
    assert f"{PROJECTION}_scale" in refusal(broken)


@pytest.mark.parametrize(
    "change", [{"quant_method": "gptq"}, {"linear_class": "hyperlinear"}, {"quantization_mode": "sideways"}]
)
def test_unknown_quantisation(refusal, broken, change):
    known = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline"}
    edit_config(broken, quantization_config=known | change)
    message = refusal(broken)
    assert next(iter(change)) in message
    assert next(iter(change.values())) in message


def test_unknown_key(refusal, broken):
    edit_config(broken, sliding_window=128)
    assert "sliding_window" in refusal(broken)


def test_config_against_tensors(refusal, broken):
    edit_config(broken, num_hidden_layers=3)
    assert "layers.2" in refusal(broken)


def test_tokenizer_that_does_not_fit(bitnet, broken):
    vocab = {f"word{number}": number for number in range(261)}
    Tokenizer(models.WordLevel(vocab, unk_token="word0")).save(str(broken / "tokenizer.json"))
    message = bitnet("generate", "word1", "--model", broken).refusal
    assert "tokenizer" in message


def offline(folder, **environment):
    """`bitnet info` of a Hub id without a network; huggingface_hub reads its environment at import."""
    return subprocess.run(
        [sys.executable, "-m", "bitnet", "info", "nobody/nothing"],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_network(tmp_path):
    result = offline(tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "nobody/nothing" in result.stderr
    assert "network" in result.stderr


def test_cache_that_is_a_file(tmp_path):
    (tmp_path / "hub").write_text("")
    result = offline(tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "nobody/nothing" in result.stderr
