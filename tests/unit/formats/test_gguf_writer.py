"""write_gguf: exact round trips, a peer that reads the files, refusals that leave nothing behind."""

from dataclasses import replace

import numpy as np
import pytest

from bitnet.errors import InputError, UnsupportedError
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.formats.gguf.container import read_container
from bitnet.formats.gguf.tensor_names import published_name
from bitnet.formats.gguf.writer import write_gguf
from bitnet.formats.tensor_names import EMBEDDING, HEAD, projections
from bitnet.quantize.packing import unpack_2bit

TYPES = ("i2_s", "tq2_0", "tq1_0")


@pytest.mark.parametrize("ternary", TYPES)
class TestRoundTrip:
    def test_every_code_and_scale(self, ternary, tmp_path, make_checkpoint, gguf_config):
        source = make_checkpoint()
        error = write_gguf(tmp_path / "model.gguf", source, ternary)
        found = read_checkpoint(tmp_path / "model.gguf")
        assert error == 0
        assert found.config == source.config
        assert found.stop_tokens == {5, 7}
        assert found.tensors.keys() == source.tensors.keys()
        for name in projections(gguf_config):
            np.testing.assert_array_equal(found.linear(name).packed, source.linear(name).packed)
            assert found.linear(name).scale == source.linear(name).scale
        for name in set(source.tensors) - {f"{name}.weight" for name in projections(gguf_config)}:
            np.testing.assert_array_equal(found.tensor(name).float32(), source.tensor(name).float32())

    def test_biases_and_an_untied_head(self, ternary, tmp_path, make_checkpoint, gguf_config):
        config = replace(
            gguf_config, tie_word_embeddings=False, attention_bias=True, mlp_bias=True, head_dim=128
        )
        source = make_checkpoint(config)
        write_gguf(tmp_path / "model.gguf", source, ternary)
        found = read_checkpoint(tmp_path / "model.gguf")
        assert found.config == config
        for name in projections(config):
            np.testing.assert_array_equal(found.linear(name).packed, source.linear(name).packed)
            np.testing.assert_array_equal(found.linear(name).bias, source.linear(name).bias)
        np.testing.assert_array_equal(found.tensor(HEAD).float32(), source.tensor(HEAD).float32())

    def test_masters_are_quantised(self, ternary, golden, tmp_path):
        masters = read_checkpoint(golden / "bf16_online")
        error = write_gguf(tmp_path / "model.gguf", masters, ternary)
        assert (error == 0) == (ternary == "i2_s")
        assert error < 2**-11
        found = read_checkpoint(tmp_path / "model.gguf")
        for name in projections(masters.config):
            np.testing.assert_array_equal(found.linear(name).packed, masters.linear(name).packed)

    @pytest.mark.parametrize(("embedding", "most"), [("q8_0", 0.01), ("q6_k", 0.025)])
    def test_rounded_embeddings(self, ternary, embedding, most, tmp_path, make_checkpoint):
        source = make_checkpoint()
        write_gguf(tmp_path / "model.gguf", source, ternary, embedding)
        found = read_checkpoint(tmp_path / "model.gguf").tensor(EMBEDDING)
        exact = source.tensor(EMBEDDING).float32()
        assert np.linalg.norm(found.float32() - exact) < most * np.linalg.norm(exact)
        np.testing.assert_array_equal(found.rows(3, 9).data, found.data[3:9])
        write_gguf(tmp_path / "again.gguf", read_checkpoint(tmp_path / "model.gguf"), ternary, embedding)
        np.testing.assert_array_equal(
            read_checkpoint(tmp_path / "again.gguf").tensor(EMBEDDING).data, found.data
        )


@pytest.mark.parametrize("ternary", ["tq2_0", "tq1_0"])
def test_the_gguf_package_reads_what_we_write(ternary, tmp_path, make_checkpoint):
    gguf = pytest.importorskip("gguf")
    source = make_checkpoint()
    write_gguf(tmp_path / "model.gguf", source, ternary, "q8_0")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert reader.get_field("general.architecture").contents() == "bitnet-b1.58"
    assert reader.get_field("bitnet-b1.58.attention.head_count_kv").contents() == 2
    names = {published_name(tensor.name) for tensor in reader.tensors}
    assert names == {name for name in source.tensors if not name.endswith("_scale")}
    for tensor in reader.tensors:
        name = published_name(tensor.name)
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if name.endswith("_proj.weight"):
            linear = source.linear(name.removesuffix(".weight"))
            np.testing.assert_array_equal(values, unpack_2bit(linear.packed) * linear.scale)
        elif name != EMBEDDING:
            np.testing.assert_array_equal(values.reshape(-1), source.tensor(name).float32().reshape(-1))


def test_silu_models_are_llama_cpp_s_architecture(tmp_path, make_checkpoint, gguf_config):
    config = replace(gguf_config, hidden_act="silu")
    write_gguf(tmp_path / "model.gguf", make_checkpoint(config), "tq2_0")
    assert read_container(tmp_path / "model.gguf").metadata.text("general.architecture") == "bitnet"
    assert read_checkpoint(tmp_path / "model.gguf").config == config


class TestWriting:
    def test_rows_that_blocks_do_not_divide(self, tmp_path, make_checkpoint, gguf_config):
        config = replace(gguf_config, intermediate_size=384)
        for ternary in ("tq2_0", "tq1_0"):
            with pytest.raises(UnsupportedError, match=r"down_proj\.weight has rows of 384; .*256.*I2_S"):
                write_gguf(tmp_path / "model.gguf", make_checkpoint(config), ternary)
        write_gguf(tmp_path / "model.gguf", make_checkpoint(config), "i2_s")
        assert read_checkpoint(tmp_path / "model.gguf").config == config

    def test_matrices_and_embeddings_that_blocks_do_not_divide(self, tmp_path, make_checkpoint, gguf_config):
        config = replace(gguf_config, hidden_size=20, intermediate_size=12, head_dim=4)
        with pytest.raises(UnsupportedError, match="128"):
            write_gguf(tmp_path / "model.gguf", make_checkpoint(config), "i2_s")
        config = replace(gguf_config, hidden_size=384)
        with pytest.raises(UnsupportedError, match="--embedding f16"):
            write_gguf(tmp_path / "model.gguf", make_checkpoint(config), "i2_s", "q6_k")
        assert not any(tmp_path.iterdir())

    def test_numbers_beyond_float16(self, tmp_path, make_checkpoint):
        source = make_checkpoint()
        source.tensors[EMBEDDING].data[3, 5] = 0x7F00  # 1.7e38
        with pytest.raises(UnsupportedError, match=r"embed_tokens\.weight holds 1\.7\d*e\+38"):
            write_gguf(tmp_path / "model.gguf", source, "i2_s")
        assert not any(tmp_path.iterdir())

    def test_existing_file(self, tmp_path, make_checkpoint):
        (tmp_path / "model.gguf").write_text("dear diary")
        with pytest.raises(InputError, match="exists already"):
            write_gguf(tmp_path / "model.gguf", make_checkpoint(), "i2_s")
        assert (tmp_path / "model.gguf").read_text() == "dear diary"

    def test_more_ends_than_places(self, tmp_path, make_checkpoint, gguf_config, caplog):
        source = make_checkpoint(replace(gguf_config, eos_token_id=(5, 7, 1, 9)))
        write_gguf(tmp_path / "model.gguf", source, "i2_s")
        assert "4 tokens end an answer" in caplog.text
        assert "9 are left out" in caplog.text
        assert read_checkpoint(tmp_path / "model.gguf").config.eos_token_id == (5, 7, 1)

    def test_progress_reaches_the_end(self, tmp_path, make_checkpoint):
        calls = []
        write_gguf(
            tmp_path / "model.gguf", make_checkpoint(), "tq1_0", progress=lambda *call: calls.append(call)
        )
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)
        assert calls[-1][0] == calls[-1][1]
