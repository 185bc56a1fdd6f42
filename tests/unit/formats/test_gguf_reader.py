"""read_gguf and write_gguf: the recorded file's logits, exact round trips, refusals that name the culprit."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import bitnet
from bitnet.config import PRESETS, ModelConfig
from bitnet.errors import BitnetError, ConfigError, FormatError, InputError, UnsupportedError
from bitnet.formats.checkpoint import Checkpoint, read_checkpoint
from bitnet.formats.gguf.block_types import BF16, F16, F32, I2_S, Q4_K, Q6_K, Q8_0, TQ2_0
from bitnet.formats.gguf.container import read_container
from bitnet.formats.gguf.container_writer import Planned, write_container
from bitnet.formats.gguf.i2_s_layout import _arm_columns
from bitnet.formats.gguf.tensor_names import gguf_name, published_name
from bitnet.formats.gguf.writer import write_gguf
from bitnet.formats.tensor import Tensor
from bitnet.formats.tensor_names import EMBEDDING, HEAD, expected_tensors, projections
from bitnet.quantize.packing import pack_2bit, unpack_2bit

TYPES = ("i2_s", "tq2_0", "tq1_0")
CONFIG = ModelConfig(
    vocab_size=24,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
    bos_token_id=3,
    eos_token_id=(5, 7),
)


@pytest.fixture(scope="module")
def twin(golden):
    return read_checkpoint(golden / "packed_offline")


def make(config=CONFIG, seed=0):
    """A checkpoint in memory with random codes and float16-exact scales."""
    random = np.random.default_rng(seed)
    tensors = {}
    for name, item in expected_tensors(config).items():
        if item.kind == "packed":
            codes = random.integers(-1, 2, (4 * item.shape[0], item.shape[1]), dtype=np.int8)
            tensors[name] = Tensor.of(pack_2bit(codes))
        elif item.kind == "scale":
            tensors[name] = Tensor.of(np.array([random.integers(1, 9) / 4], np.float32), "BF16")
        else:
            tensors[name] = Tensor.of(random.normal(size=item.shape).astype(np.float32), "BF16")
    return Checkpoint(config, tensors, "made", None, frozenset(config.eos_token_id))


@pytest.fixture
def edited(tmp_path):
    """A good file rewritten with other keys or tensors; a value of None drops a key."""

    def edit(metadata=None, tensors=None, config=CONFIG, ternary="i2_s", drop=()):
        source = tmp_path / "good.gguf"
        source.unlink(missing_ok=True)
        write_gguf(source, make(config), ternary)
        container = read_container(source)
        values = dict(container.metadata) | (metadata or {})
        values = {key: value for key, value in values.items() if value is not None}
        blocks = {
            item.name: (Planned(item.type, item.shape), item.raw) for item in container.tensors.values()
        }
        blocks |= tensors or {}
        blocks = {name: block for name, block in blocks.items() if name not in drop}
        path = tmp_path / "edited.gguf"
        path.unlink(missing_ok=True)
        planned = {name: plan for name, (plan, _) in blocks.items()}
        write_container(path, values, planned, ((name, np.asarray(raw)) for name, (_, raw) in blocks.items()))
        return path

    return edit


def floats(values, kind=F32):
    array = np.asarray(values, {"F32": np.float32, "F16": np.float16}[kind.name])
    return Planned(kind, array.shape), array.reshape(-1).view(np.uint8)


class TestRecorded:
    """The file written by others, beside the safetensors of the same model."""

    def test_tensors(self, golden, twin):
        found = read_checkpoint(golden / "gguf" / "tiny-i2_s.gguf")
        assert found.config == replace(twin.config, bos_token_id=None, eos_token_id=())  # it names no tokens
        assert found.tensors.keys() == twin.tensors.keys()
        for name, tensor in twin.tensors.items():
            if name.endswith("weight_scale"):
                # float32 there, rounded to bfloat16 here
                assert found.tensor(name).float32() == pytest.approx(tensor.float32(), rel=2**-8)
            else:
                np.testing.assert_array_equal(found.tensor(name).float32(), tensor.float32())
        for name in projections(twin.config):
            np.testing.assert_array_equal(found.linear(name).packed, twin.linear(name).packed)

    @pytest.mark.parametrize("engine", ["cpu", "torch"])
    def test_logits(self, golden, golden_forward, engine):
        """The file's float32 scales are those of the masters, so its logits are theirs; the packed twin's are
        those up to the rounding of its scales."""
        options = {"kv_dtype": "float32"} if engine == "cpu" else {}
        model = bitnet.load_model(golden / "gguf" / "tiny-i2_s.gguf", engine=engine, **options)
        ids = golden_forward["ids_safe"][0]
        (logits,) = model.forward([(model.new_cache(16), ids)], all_logits=True)
        np.testing.assert_allclose(
            logits, golden_forward["safe_logits_bf16_online_fp32"][0], atol=1e-4, rtol=0
        )
        packed = golden_forward["safe_logits_packed_offline_fp32"][0]
        assert np.abs(logits - packed).max() < 0.5
        np.testing.assert_array_equal(logits.argmax(-1), packed.argmax(-1))

    def test_logits_with_the_twin_s_scales(self, golden, golden_forward, twin, tmp_path):
        write_gguf(tmp_path / "model.gguf", twin, "i2_s")
        model = bitnet.load_model(tmp_path / "model.gguf", kv_dtype="float32")
        (logits,) = model.forward([(model.new_cache(16), golden_forward["ids_safe"][0])], all_logits=True)
        expected = golden_forward["safe_logits_packed_offline_fp32"][0]
        np.testing.assert_allclose(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("ternary", TYPES)
class TestRoundTrip:
    def test_every_code_and_scale(self, ternary, tmp_path):
        source = make()
        error = write_gguf(tmp_path / "model.gguf", source, ternary)
        found = read_checkpoint(tmp_path / "model.gguf")
        assert error == 0
        assert found.config == source.config
        assert found.stop_tokens == {5, 7}
        assert found.tensors.keys() == source.tensors.keys()
        for name in projections(CONFIG):
            np.testing.assert_array_equal(found.linear(name).packed, source.linear(name).packed)
            assert found.linear(name).scale == source.linear(name).scale
        for name in set(source.tensors) - {f"{name}.weight" for name in projections(CONFIG)}:
            np.testing.assert_array_equal(found.tensor(name).float32(), source.tensor(name).float32())

    def test_biases_and_an_untied_head(self, ternary, tmp_path):
        config = replace(CONFIG, tie_word_embeddings=False, attention_bias=True, mlp_bias=True, head_dim=128)
        source = make(config)
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
    def test_rounded_embeddings(self, ternary, embedding, most, tmp_path):
        source = make()
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
def test_the_gguf_package_reads_what_we_write(ternary, tmp_path):
    gguf = pytest.importorskip("gguf")
    source = make()
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


def test_silu_models_are_llama_cpp_s_architecture(tmp_path):
    config = replace(CONFIG, hidden_act="silu")
    write_gguf(tmp_path / "model.gguf", make(config), "tq2_0")
    assert read_container(tmp_path / "model.gguf").metadata.text("general.architecture") == "bitnet"
    assert read_checkpoint(tmp_path / "model.gguf").config == config


@pytest.mark.parametrize(
    ("architecture", "activation"), [("bitnet", "silu"), ("bitnet-25", "relu2"), ("bitnet-b1.58", "relu2")]
)
def test_the_architecture_decides_the_activation(edited, architecture, activation):
    path = edited(config=CONFIG)
    container = read_container(path)
    keys = {}
    for key, value in container.metadata.items():
        keys[key] = None
        if not key.endswith(("hidden_act", "i2_s_layout")):
            keys[key.replace("bitnet-b1.58", architecture)] = value
    keys["general.architecture"] = architecture
    assert read_checkpoint(edited(keys)).config.hidden_act == activation


def test_2b4t_is_known_by_its_shape():
    from bitnet.formats.gguf.hyperparameters import _read_activation
    from bitnet.formats.gguf.metadata import Metadata

    known = PRESETS["2b4t"]
    values = {key: getattr(known, key) for key in known.__dataclass_fields__}
    assert _read_activation(Metadata({}, "x"), "bitnet", values) == "relu2"
    assert _read_activation(Metadata({}, "x"), "bitnet", values | {"num_hidden_layers": 26}) == "silu"


@pytest.mark.parametrize("name", list(expected_tensors(replace(CONFIG, attention_bias=True))))
def test_names_both_ways(name):
    assert published_name(gguf_name(name)) == name


@pytest.mark.parametrize(
    "name",
    ["rope_freqs.weight", "blk.00.attn_q.weight", "blk.0.attn_norm.bias", "blk.0.x.weight", "blk.0.attn_q"],
)
def test_names_that_are_none(name):
    assert published_name(name) is None


class TestKeys:
    def test_those_of_llama_cpp_s_converter(self, edited):
        keys = {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0, "vocab_size": 24}
        path = edited({f"bitnet-b1.58.{key}": value for key, value in keys.items()})
        assert read_checkpoint(path).config == CONFIG

    def test_defaults(self, edited):
        keys = ("attention.head_count_kv", "rope.freq_base", "attention.key_length", "vocab_size")
        path = edited(
            {f"bitnet-b1.58.{key}": None for key in keys}, config=replace(CONFIG, num_key_value_heads=4)
        )
        config = read_checkpoint(path).config
        assert (config.num_key_value_heads, config.rope_theta, config.vocab_size) == (4, 10000.0, 24)

    @pytest.mark.parametrize(
        ("key", "value", "error", "message"),
        [
            ("general.architecture", "llama", UnsupportedError, "'llama'; readable are bitnet-b1.58"),
            ("general.architecture", None, ConfigError, "general.architecture is missing"),
            ("bitnet-b1.58.block_count", None, ConfigError, "bitnet-b1.58.block_count is missing"),
            ("bitnet-b1.58.block_count", "2", ConfigError, "bitnet-b1.58.block_count is '2'"),
            ("bitnet-b1.58.block_count", 0, ConfigError, "num_hidden_layers is 0"),
            ("bitnet-b1.58.block_count", 2**31, FormatError, "num_hidden_layers is 2147483648"),
            ("bitnet-b1.58.block_count", 3, FormatError, "layers.2"),
            ("bitnet-b1.58.embedding_length", 512, FormatError, "embed_tokens"),
            ("bitnet-b1.58.vocab_size", 25, ConfigError, "token_embd.weight has 24 rows"),
            ("bitnet-b1.58.rope.dimension_count", 32, UnsupportedError, "rope.dimension_count 32"),
            ("bitnet-b1.58.rope.scaling.type", "yarn", UnsupportedError, "'yarn'"),
            ("bitnet-b1.58.rope.freq_base", float("nan"), ConfigError, "rope_theta is nan"),
            ("bitnet-b1.58.rope.freq_base", "big", ConfigError, "rope.freq_base is 'big'"),
            ("bitnet-b1.58.expert_count", 8, UnsupportedError, "expert_count is not known"),
            ("bitnet-b1.58.hidden_act", "gelu", ConfigError, "hidden_act is 'gelu'"),
            ("bitnet-b1.58.i2_s_layout", "arm", UnsupportedError, "i2_s_layout is 'arm'; readable is 'x86'"),
            ("tokenizer.ggml.eos_token_id", 24, ConfigError, "eos_token_id is 24"),
        ],
    )
    def test_impossible(self, edited, key, value, error, message):
        path = edited({key: value})
        with pytest.raises(error) as raised:
            read_checkpoint(path)
        assert message in str(raised.value)
        assert str(path) in str(raised.value)


class TestTensors:
    def test_missing(self, edited):
        with pytest.raises(FormatError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
            read_checkpoint(edited(drop=["blk.1.ffn_up.weight"]))
        with pytest.raises(ConfigError, match=r"token_embd\.weight is missing"):
            read_checkpoint(edited(drop=["token_embd.weight"]))

    def test_unknown(self, edited):
        with pytest.raises(FormatError, match=r"no place for the tensor rope_freqs\.weight"):
            read_checkpoint(edited(tensors={"rope_freqs.weight": floats([1.0])}))

    def test_projections_that_are_not_ternary(self, edited):
        wrong = floats(np.zeros((256, 256)))
        with pytest.raises(UnsupportedError, match=r"blk\.0\.attn_q\.weight is F32; .*I2_S, TQ1_0, TQ2_0"):
            read_checkpoint(edited(tensors={"blk.0.attn_q.weight": wrong}))

    def test_shapes(self, edited):
        narrow = Planned(I2_S, (256, 128)), np.full(256 * 128 // 4 + 32, 0x61, np.uint8)
        narrow[1][-32:] = np.frombuffer(np.float32(1).tobytes() * 8, np.uint8)
        with pytest.raises(FormatError, match=r"q_proj\.weight has shape \[64, 128\]"):
            read_checkpoint(edited(tensors={"blk.0.attn_q.weight": narrow}))
        three = Planned(I2_S, (2, 128, 256)), np.zeros(2 * 128 * 64 + 32, np.uint8)
        with pytest.raises(BitnetError, match=r"blk\.0\.attn_q\.weight"):
            read_checkpoint(edited({"bitnet-b1.58.i2_s_layout": "x86"}, {"blk.0.attn_q.weight": three}))
        odd = Planned(F32, (2, 2)), np.zeros(16, np.uint8)
        with pytest.raises(FormatError, match=r"norm\.weight has shape \[2, 2\]"):
            read_checkpoint(edited(tensors={"output_norm.weight": odd}))

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_impossible_numbers(self, edited, value):
        norm = np.ones(256)
        norm[7] = value
        with pytest.raises(FormatError, match=r"model\.norm\.weight holds NaN or infinity at \[7\]"):
            read_checkpoint(edited(tensors={"output_norm.weight": floats(norm)}))

    @pytest.mark.parametrize("kind", [Q8_0, Q4_K, Q6_K, F32, BF16, F16], ids=lambda kind: kind.name)
    def test_embeddings_of_every_type(self, edited, kind):
        gguf = pytest.importorskip("gguf")
        random = np.random.default_rng(0)
        raw = random.integers(0, 128, kind.size((24, 256), "x"), np.uint8)
        factors = {"Q8_0": slice(0, 2), "Q4_K": slice(0, 4), "Q6_K": slice(208, 210)}
        if kind.name in factors:
            half = np.array([0.01, 0.01], np.float16).view(np.uint8)
            place = factors[kind.name]
            raw.reshape(-1, kind.bytes)[:, place] = half[: place.stop - place.start]
        else:
            raw.reshape(24, -1, kind.bytes)[:, :, -1] = 60  # values about one
        path = edited(tensors={"token_embd.weight": (Planned(kind, (24, 256)), raw)})
        theirs = gguf.quants.dequantize(raw.reshape(24, -1), gguf.GGMLQuantizationType[kind.name])
        np.testing.assert_array_equal(
            read_checkpoint(path).tensor(EMBEDDING).float32(), theirs.reshape(24, 256)
        )
        model = bitnet.load_model(path)
        (logits,) = model.forward([(model.new_cache(4), [1, 2])])
        assert logits.shape == (24,)
        assert np.isfinite(logits).all()

    def test_an_embedding_that_is_not_finite(self, edited):
        blocks = np.zeros((192, 34), np.uint8)
        blocks[100, :2] = np.array([np.inf], np.float16).view(np.uint8)
        with pytest.raises(FormatError, match=r"embed_tokens\.weight holds NaN or infinity at \[12, 128\]"):
            read_checkpoint(
                edited(tensors={"token_embd.weight": (Planned(Q8_0, (24, 256)), blocks.reshape(-1))})
            )

    def test_scales_beside_a_weight_multiply(self, edited):
        path = edited(tensors={"blk.0.attn_q.scale": floats([0.5])})
        name = "model.layers.0.self_attn.q_proj"
        assert read_checkpoint(path).linear(name).scale == 0.5 * make().linear(name).scale
        for wrong in (floats([0.5, 1]), floats([0.5], F16)):
            with pytest.raises(FormatError, match=r"blk\.0\.attn_q\.scale is"):
                read_checkpoint(edited(tensors={"blk.0.attn_q.scale": wrong}))
        with pytest.raises(FormatError, match=r"q_proj\.weight_scale is 0"):
            read_checkpoint(edited(tensors={"blk.0.attn_q.scale": floats([0])}))

    def test_float16_that_bfloat16_holds_becomes_it(self, edited):
        coarse = np.round(np.random.default_rng(0).normal(size=(24, 256)) * 64) / 64
        fine = coarse + 2.0**-9
        for values, dtype in ((coarse, "BF16"), (fine, "F16")):
            tensor = read_checkpoint(edited(tensors={"token_embd.weight": floats(values, F16)})).tensor(
                EMBEDDING
            )
            assert tensor.dtype == dtype
            np.testing.assert_array_equal(tensor.float32(), values.astype(np.float16).astype(np.float32))


class TestWriting:
    def test_rows_that_blocks_do_not_divide(self, tmp_path):
        config = replace(CONFIG, intermediate_size=384)
        for ternary in ("tq2_0", "tq1_0"):
            with pytest.raises(UnsupportedError, match=r"down_proj\.weight has rows of 384; .*256.*I2_S"):
                write_gguf(tmp_path / "model.gguf", make(config), ternary)
        write_gguf(tmp_path / "model.gguf", make(config), "i2_s")
        assert read_checkpoint(tmp_path / "model.gguf").config == config

    def test_matrices_and_embeddings_that_blocks_do_not_divide(self, tmp_path):
        config = replace(CONFIG, hidden_size=20, intermediate_size=12, head_dim=4)
        with pytest.raises(UnsupportedError, match="128"):
            write_gguf(tmp_path / "model.gguf", make(config), "i2_s")
        config = replace(CONFIG, hidden_size=384)
        with pytest.raises(UnsupportedError, match="--embedding f16"):
            write_gguf(tmp_path / "model.gguf", make(config), "i2_s", "q6_k")
        assert not any(tmp_path.iterdir())

    def test_numbers_beyond_float16(self, tmp_path):
        source = make()
        source.tensors[EMBEDDING].data[3, 5] = 0x7F00  # 1.7e38
        with pytest.raises(UnsupportedError, match=r"embed_tokens\.weight holds 1\.7\d*e\+38"):
            write_gguf(tmp_path / "model.gguf", source, "i2_s")
        assert not any(tmp_path.iterdir())

    def test_existing_file(self, tmp_path):
        (tmp_path / "model.gguf").write_text("dear diary")
        with pytest.raises(InputError, match="exists already"):
            write_gguf(tmp_path / "model.gguf", make(), "i2_s")
        assert (tmp_path / "model.gguf").read_text() == "dear diary"

    def test_progress_reaches_the_end(self, tmp_path):
        calls = []
        write_gguf(tmp_path / "model.gguf", make(), "tq1_0", progress=lambda *call: calls.append(call))
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)
        assert calls[-1][0] == calls[-1][1]


class TestLayout:
    """I2_S in another byte order, or damaged, is refused where it can be told."""

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
    def test_implausible_zeros(self, edited, byte):
        share = "100.0%" if byte == 0x55 else "0.0%"
        with pytest.raises(FormatError, match=rf"{share} of blk\.1\.ffn_gate\.weight is zero"):
            read_checkpoint(self.with_codes(edited, byte))
        stated = {"bitnet-b1.58.i2_s_layout": "x86"}
        assert read_checkpoint(self.with_codes(edited, byte, **stated)).config == CONFIG

    def test_arm_s_byte_order(self, edited):
        """A model whose neurons are tied as training ties them, its matrices in ARM's order."""
        arm, x86 = self.tied_model(edited, in_arm_order=True), self.tied_model(edited, in_arm_order=False)
        with pytest.raises(UnsupportedError, match=r"ARM.*not x86"):
            read_checkpoint(arm())
        assert read_checkpoint(x86()).config == CONFIG

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


def test_a_tq_file_may_be_silent_about_its_layout(edited):
    assert read_checkpoint(edited(ternary="tq2_0")).config == CONFIG
    assert TQ2_0.tail == 0
