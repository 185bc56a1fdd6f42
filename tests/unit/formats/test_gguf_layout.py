"""I2_S in another byte order, or damaged, is refused where it can be told."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

import bitnet
from bitnet.errors import FormatError, UnsupportedError
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.formats.gguf import i2_s_layout
from bitnet.formats.gguf.block_types import I2_S, TQ2_0
from bitnet.formats.gguf.container import read_container
from bitnet.formats.gguf.container_writer import Planned, write_container
from bitnet.formats.gguf.i2_s_layout import _arm_columns
from bitnet.formats.gguf.tensor_names import published_name
from bitnet.formats.gguf.writer import write_gguf
from bitnet.quantize.packing import pack_2bit, unpack_2bit


class TestLayout:
    name = "blk.1.ffn_gate.weight"

    def with_codes(self, edited, byte, **keys):
        raw = np.full(512 * 64 + 32, byte, np.uint8)
        raw[-32:-28] = np.frombuffer(np.float32(1).tobytes(), np.uint8)
        keys = {"bitnet-b1.58.i2_s_layout": None} | keys
        return edited(keys, {self.name: (Planned(I2_S, (512, 256)), raw)})

    @pytest.mark.parametrize("byte", [0x03, 0xC0, 0xFF])
    def test_code_three(self, edited, byte):
        with pytest.raises(
            FormatError, match=r"blk\.1\.ffn_gate\.weight holds the code 3 in byte 0, .*layout"
        ):
            read_checkpoint(self.with_codes(edited, byte))

    @pytest.mark.parametrize("byte", [0x00, 0xAA, 0x55])
    def test_implausible_zeros(self, edited, byte, gguf_config):
        share = "100.0%" if byte == 0x55 else "0.0%"
        with pytest.raises(FormatError, match=rf"{share} of blk\.1\.ffn_gate\.weight is zero"):
            read_checkpoint(self.with_codes(edited, byte))
        stated = {"bitnet-b1.58.i2_s_layout": "x86"}
        assert read_checkpoint(self.with_codes(edited, byte, **stated)).config == gguf_config

    def test_arm_s_byte_order(self, edited, gguf_config):
        """A model whose neurons are tied as training ties them, its matrices in ARM's order."""
        arm, x86 = self.tied_model(edited, in_arm_order=True), self.tied_model(edited, in_arm_order=False)
        with pytest.raises(UnsupportedError, match=r"ARM.*not x86"):
            read_checkpoint(arm())
        assert read_checkpoint(x86()).config == gguf_config

    def tied_model(self, edited, in_arm_order):
        random = np.random.default_rng(0)
        tensors = {}
        for layer in range(2):
            density = random.uniform(0.2, 0.9, 512)
            shapes = {"ffn_gate": (512, 256), "ffn_up": (512, 256), "ffn_down": (256, 512)}
            for part, shape in shapes.items():
                chance = density[None, :] if part == "ffn_down" else density[:, None]
                codes = random.choice(np.array([-1, 1], np.int8), shape) * (random.random(shape) < chance)
                tensors[f"blk.{layer}.{part}.weight"] = (
                    Planned(I2_S, shape),
                    (encode_arm if in_arm_order else encode_x86)(codes.astype(np.int8)),
                )
        return partial(edited, {"bitnet-b1.58.i2_s_layout": None}, tensors)


def tail():
    return np.frombuffer(np.float32(1).tobytes() + bytes(28), np.uint8)


def encode_x86(codes):
    stored = (codes.reshape(-1, 4, 32) + 1).astype(np.uint8)
    return np.concatenate(
        [sum(stored[:, n] << (6 - 2 * n) for n in range(4)).astype(np.uint8).reshape(-1), tail()]
    )


def encode_arm(codes):
    """Blocks of 64 in 16 bytes: element j in byte j % 16 at shift 6 - 2 (j // 16)."""
    stored = (codes.reshape(-1, 4, 16) + 1).astype(np.uint8)
    return np.concatenate(
        [sum(stored[:, n] << (6 - 2 * n) for n in range(4)).astype(np.uint8).reshape(-1), tail()]
    )


def test_arm_s_columns_are_found(tmp_path):
    codes = np.random.default_rng(0).integers(-1, 2, (4, 256), dtype=np.int8)
    from bitnet.formats.gguf.ternary_blocks import to_packed

    misread = unpack_2bit(to_packed(I2_S, encode_arm(codes), 4, 256))
    np.testing.assert_array_equal(misread[:, _arm_columns(256)], codes)
    assert not np.array_equal(misread, codes)


def test_a_trained_model_is_told_from_its_arm_twin(tmp_path):
    """The embedded story model, whose neurons training has tied."""
    source = read_checkpoint(bitnet.load.embedded_model())
    write_gguf(tmp_path / "model.gguf", source, "i2_s")
    container = read_container(tmp_path / "model.gguf")
    keys = {key: value for key, value in container.metadata.items() if not key.endswith("i2_s_layout")}
    plans = {item.name: Planned(item.type, item.shape) for item in container.tensors.values()}

    def rewritten(path, encode):
        def blocks():
            for item in container.tensors.values():
                if item.type is I2_S:
                    linear = source.linear(published_name(item.name).removesuffix(".weight"))
                    yield item.name, encode(unpack_2bit(linear.packed))
                else:
                    yield item.name, item.raw

        write_container(path, keys, plans, blocks())
        return path

    assert read_checkpoint(rewritten(tmp_path / "x86.gguf", encode_x86)).config.hidden_size == 256
    with pytest.raises(UnsupportedError, match="ARM"):
        read_checkpoint(rewritten(tmp_path / "arm.gguf", encode_arm))


def test_a_tq_file_may_be_silent_about_its_layout(edited, gguf_config):
    assert read_checkpoint(edited(ternary="tq2_0")).config == gguf_config
    assert TQ2_0.tail == 0


def test_densities_are_those_of_the_whole_matrix(monkeypatch):
    """Unpacked a few rows at a time."""
    monkeypatch.setattr(i2_s_layout, "_ROWS", 3)
    codes = np.random.default_rng(0).integers(-1, 2, (32, 128)).astype(np.int8)
    packed = pack_2bit(codes)
    monkeypatch.setattr(i2_s_layout, "to_packed", lambda *_: packed)
    item = SimpleNamespace(type=None, raw=None, shape=codes.shape)
    for axis in (0, 1):
        np.testing.assert_allclose(i2_s_layout._density(item, axis), (codes != 0).mean(axis=axis), rtol=1e-12)
