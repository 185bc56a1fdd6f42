"""`bitnet convert`: every source to every target, exactly, or a refusal that leaves nothing behind."""

import json
import os
import shutil

import numpy as np
import pytest

import bitnet as library
from bitnet.config import ModelConfig
from bitnet.convert import convert
from bitnet.errors import InputError
from bitnet.formats.checkpoint import read_checkpoint, write_checkpoint
from bitnet.formats.synthesize import synthesize
from bitnet.formats.tensor import Tensor
from bitnet.formats.tensor_names import projections
from bitnet.load import load_tokenizer

TARGETS = ("packed", "bf16", "gguf-i2_s", "gguf-tq2_0", "gguf-tq1_0")
USER = [{"role": "user", "content": "hello there"}]


@pytest.fixture
def run(bitnet, tmp_path):
    """Convert to `tmp_path / name`, and return the new path and the printed lines."""

    def call(source, to, name=None, *options):
        path = tmp_path / (name or (f"{to}.gguf" if to.startswith("gguf") else to))
        outcome = bitnet("convert", source, path, "--to", to, *options)
        assert outcome.code == 0, outcome.err
        return path, outcome.out

    return call


def assert_same_model(found, expected, scale=0.0):
    assert found.config.with_quantization("offline") == expected.config.with_quantization("offline")
    for name in projections(expected.config):
        ours, theirs = found.linear(name), expected.linear(name)
        np.testing.assert_array_equal(ours.packed, theirs.packed)
        assert ours.scale == pytest.approx(theirs.scale, rel=scale, abs=0)
    for name, tensor in expected.tensors.items():
        if "_proj." not in name:
            np.testing.assert_array_equal(found.tensor(name).float32(), tensor.float32())


@pytest.mark.parametrize("source", ["packed_offline", "bf16_online", "gguf/tiny-i2_s.gguf"])
@pytest.mark.parametrize("to", TARGETS)
def test_every_source_to_every_target(run, golden, source, to):
    expected = read_checkpoint(golden / source)
    path, out = run(golden / source, to)
    rounding = 2**-11 if "tq" in to else 1e-6 if to == "bf16" else 0
    assert_same_model(read_checkpoint(path), expected, rounding)
    size = path.stat().st_size if path.is_file() else (path / "model.safetensors").stat().st_size
    assert f"{size:,} bytes, 1,806,336 parameters" in out
    bits = {"packed": "2", "bf16": "16", "gguf-i2_s": "2", "gguf-tq2_0": "2.062", "gguf-tq1_0": "1.688"}[to]
    assert f"bits a weight: {bits} ternary, {8 * size / 1_806_336:.2f} overall" in out
    quantised = source == "bf16_online" and to != "bf16"
    assert ("quantised: the source holds masters" in out) == quantised
    assert ("carried over exactly" in out) == (not quantised)
    exact = source == "packed_offline" or "tq" not in to
    assert ("scales: exact" in out) == exact
    assert ("scales: rounded to float16, by up to 0.0" in out) == (not exact)


@pytest.mark.parametrize("to", TARGETS)
def test_and_back_to_the_same_bytes(run, golden, to):
    path, _ = run(golden / "packed_offline", to)
    back, _ = run(path, "packed", "back")
    if to == "bf16":  # whose scale is a float32 mean
        assert_same_model(read_checkpoint(back), read_checkpoint(golden / "packed_offline"), 1e-6)
        return
    original = (golden / "packed_offline" / "model.safetensors").read_bytes()
    assert (back / "model.safetensors").read_bytes() == original


def test_masters_stay_as_they_are(run, golden, tmp_path):
    path, _ = run(golden / "bf16_online", "bf16")
    original = (golden / "bf16_online" / "model.safetensors").read_bytes()
    assert (path / "model.safetensors").read_bytes() == original
    wide = read_checkpoint(golden / "bf16_online")
    tensors = {name: Tensor.of(tensor.float32() * np.float32(1.1)) for name, tensor in wide.tensors.items()}
    write_checkpoint(tmp_path / "wide", wide.config, tensors)
    path, out = run(tmp_path / "wide", "bf16", "kept")
    assert read_checkpoint(path).tensor("model.layers.0.mlp.up_proj.weight").dtype == "F32"
    assert "32 ternary" in out


def test_dividing_scales_are_turned_over(run, golden, tmp_path):
    folder = shutil.copytree(golden / "packed_offline", tmp_path / "dividing")
    values = json.loads((folder / "config.json").read_text())
    values["quantization_config"]["linear_class"] = "bitlinear"
    (folder / "config.json").write_text(json.dumps(values))
    for to in ("packed", "gguf-i2_s"):
        path, _ = run(folder, to)
        found, expected = read_checkpoint(path), read_checkpoint(folder)
        assert found.config.quantization.linear_class == "autobitlinear"
        for name in projections(expected.config):
            assert found.linear(name).scale == expected.linear(name).scale


@pytest.mark.parametrize("embedding", ["f16", "q8_0", "q6_k"])
def test_embeddings(run, golden, embedding):
    path, _ = run(golden / "packed_offline", "gguf-tq2_0", None, "--embedding", embedding)
    found = read_checkpoint(path).tensor("model.embed_tokens.weight").float32()
    exact = read_checkpoint(golden / "packed_offline").tensor("model.embed_tokens.weight").float32()
    error = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    assert error <= {"f16": 0, "q8_0": 0.008, "q6_k": 0.02}[embedding]
    assert (error == 0) == (embedding == "f16")


@pytest.mark.parametrize("embedding", ["f16", "q8_0", "q6_k"])
def test_info_reads_what_was_written(run, bitnet, golden, embedding):
    path, _ = run(golden / "packed_offline", "gguf-i2_s", None, "--embedding", embedding)
    assert "embed_tokens" in bitnet("info", path).out


class TestCompanions:
    @pytest.mark.parametrize("to", TARGETS)
    def test_the_embedded_model_speaks_the_same(self, run, to):
        source = library.load.embedded_model()
        path, _ = run(source, to)
        texts = []
        for model in (source, path):
            loaded = library.load_model(model)
            greedy = library.SamplingParams(max_tokens=24, temperature=0)
            texts.append(library.generate(loaded, "Once upon a time", greedy).text)
            assert loaded.stop_tokens == {0}
        assert texts[0] == texts[1]

    def test_chat_survives_a_file(self, run, bitnet, chat_model, tmp_path):
        config = ModelConfig(
            vocab_size=260,
            hidden_size=256,
            intermediate_size=256,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            bos_token_id=0,
        )
        synthesize(config, tmp_path / "source", seed=1)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(chat_model / name, tmp_path / "source")
        (tmp_path / "source" / "generation_config.json").write_text('{"eos_token_id": [1, 9]}')
        file, _ = run(tmp_path / "source", "gguf-i2_s")
        back, _ = run(file, "packed", "back")
        copied, _ = run(tmp_path / "source", "packed", "copied")
        expected = load_tokenizer(read_checkpoint(tmp_path / "source"))
        for path in (file, back, copied):
            checkpoint = read_checkpoint(path)
            assert checkpoint.stop_tokens == {1, 9}
            tokenizer = load_tokenizer(checkpoint)
            assert tokenizer.chat(USER) == expected.chat(USER)
            assert tokenizer.encode("a<turn>b") == expected.encode("a<turn>b")
        names = {path.name for path in back.iterdir()}
        assert {"tokenizer.json", "tokenizer_config.json", "generation_config.json"} <= names
        assert bitnet("info", file).code == 0
        assert f"{file.stat().st_size:,} bytes" in bitnet("info", file).out
        said = bitnet("chat", "--model", file, "--max-tokens", 2, stdin=b"hello\n")
        assert said.code == 0

    def test_ids_only(self, run, golden):
        path, _ = run(golden / "packed_offline", "gguf-i2_s")
        assert load_tokenizer(read_checkpoint(path)) is None
        back, _ = run(path, "packed", "back")
        assert not (back / "tokenizer.json").exists()
        assert read_checkpoint(back).stop_tokens == read_checkpoint(golden / "packed_offline").stop_tokens


class TestRefusals:
    @pytest.mark.parametrize("to", TARGETS)
    def test_existing_results_are_kept(self, bitnet, golden, tmp_path, to):
        path = tmp_path / "there"
        if to.startswith("gguf"):
            path.write_text("dear diary")
        else:
            path.mkdir()
            (path / "diary").write_text("dear")
        assert "exists already" in bitnet("convert", golden / "packed_offline", path, "--to", to).refusal
        assert path.read_text() == "dear diary" if path.is_file() else (path / "diary").read_text() == "dear"

    def test_the_current_folder_is_refused_before_any_work(self, bitnet, golden, tmp_path, monkeypatch):
        source = golden.absolute() / "packed_offline"
        monkeypatch.chdir(tmp_path)
        assert "name a new folder" in bitnet("convert", source, ".", "--to", "packed").refusal

    def test_a_link_leads_to_the_folder_that_is_written(self, run, golden, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to("real")
        run(golden / "packed_offline", "packed", "link")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "real" / "config.json").is_file()

    def test_a_source_whose_name_is_no_text(self, bitnet, golden, tmp_path):
        source = shutil.copytree(golden / "packed_offline", os.fsdecode(os.fsencode(tmp_path) + b"/m\xe9l"))
        assert bitnet("convert", source, tmp_path / "x.gguf", "--to", "gguf-i2_s").code == 0

    def test_a_folder_is_no_file(self, bitnet, golden, tmp_path):
        source = golden / "packed_offline"
        assert "exists already" in bitnet("convert", source, tmp_path, "--to", "gguf-i2_s").refusal

    def test_rows_that_blocks_do_not_divide(self, bitnet, ids_model, tmp_path):
        for to in ("gguf-tq2_0", "gguf-tq1_0"):
            refusal = bitnet("convert", ids_model, tmp_path / "x.gguf", "--to", to).refusal
            assert "rows of 64" in refusal
            assert "I2_S" in refusal
        assert not any(tmp_path.iterdir())
        assert bitnet("convert", ids_model, tmp_path / "x.gguf", "--to", "gguf-i2_s").code == 0

    def test_no_such_source(self, bitnet, tmp_path):
        refusal = bitnet("convert", tmp_path / "none", tmp_path / "x", "--to", "packed").refusal
        assert "none" in refusal

    def test_an_embedding_type_without_a_gguf(self, bitnet, golden, tmp_path):
        arguments = ("--to", "packed", "--embedding", "q8_0")
        assert "q8_0" in bitnet("convert", golden / "packed_offline", tmp_path / "x", *arguments).refusal

    def test_unknown_choices(self, golden, tmp_path):
        with pytest.raises(InputError, match="'exl2'; known are packed, bf16"):
            convert(golden / "packed_offline", tmp_path / "x", "exl2")
        with pytest.raises(InputError, match="'q4_k'; known are f16"):
            convert(golden / "packed_offline", tmp_path / "x.gguf", "gguf-i2_s", "q4_k")

    def test_a_tokenizer_gguf_has_no_name_for(self, bitnet, golden, tmp_path):
        from tokenizers import Tokenizer, models

        folder = shutil.copytree(golden / "packed_offline", tmp_path / "model")
        Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
        assert "another way" in bitnet("convert", folder, tmp_path / "x.gguf", "--to", "gguf-i2_s").refusal
        assert not (tmp_path / "x.gguf").exists()

    @pytest.mark.parametrize("verb", [("info",), ("generate", "--ids", "1", "--model"), ("chat", "--model")])
    def test_damaged_files_are_refused_in_one_line(self, bitnet, golden, tmp_path, verb):
        content = (golden / "gguf" / "tiny-i2_s.gguf").read_bytes()
        for name, damaged in {"cut": content[:-100], "odd": b"GGUF", "empty": b""}.items():
            path = tmp_path / f"{name}.gguf"
            path.write_bytes(damaged)
            assert str(path) in bitnet(*verb, path).refusal


@pytest.mark.parametrize("to", TARGETS)
def test_progress_reaches_the_end(golden, tmp_path, to):
    calls = []
    convert(golden / "packed_offline", tmp_path / "new", to, progress=lambda *call: calls.append(call))
    assert calls[-1][0] == calls[-1][1]
