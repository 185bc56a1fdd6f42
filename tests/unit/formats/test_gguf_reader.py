"""read_gguf and write_gguf: the recorded file's logits, exact round trips, refusals that name the culprit."""

from dataclasses import replace

import numpy as np
import pytest

import bitnet
from bitnet.config import PRESETS
from bitnet.errors import BitnetError, ConfigError, FormatError, UnsupportedError
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.formats.gguf.block_types import BF16, F16, F32, I2_S, Q4_K, Q6_K, Q8_0
from bitnet.formats.gguf.container import read_container
from bitnet.formats.gguf.container_writer import Planned
from bitnet.formats.gguf.tensor_names import gguf_name, published_name
from bitnet.formats.gguf.writer import write_gguf
from bitnet.formats.tensor_names import EMBEDDING, expected_tensors, projections


@pytest.fixture(scope="module")
def twin(golden):
    return read_checkpoint(golden / "packed_offline")


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


@pytest.mark.parametrize(
    ("architecture", "activation"), [("bitnet", "silu"), ("bitnet-25", "relu2"), ("bitnet-b1.58", "relu2")]
)
def test_the_architecture_decides_the_activation(edited, architecture, activation, gguf_config):
    path = edited(config=gguf_config)
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


@pytest.mark.parametrize("name", list(expected_tensors(replace(PRESETS["stories"], attention_bias=True))))
def test_names_both_ways(name):
    assert published_name(gguf_name(name)) == name


@pytest.mark.parametrize(
    "name",
    ["rope_freqs.weight", "blk.00.attn_q.weight", "blk.0.attn_norm.bias", "blk.0.x.weight", "blk.0.attn_q"],
)
def test_names_that_are_none(name):
    assert published_name(name) is None


class TestKeys:
    def test_those_of_llama_cpp_s_converter(self, edited, gguf_config):
        keys = {"rope.scaling.type": "linear", "rope.scaling.factor": 1.0, "vocab_size": 24}
        path = edited({f"bitnet-b1.58.{key}": value for key, value in keys.items()})
        assert read_checkpoint(path).config == gguf_config

    def test_defaults(self, edited, gguf_config):
        keys = ("attention.head_count_kv", "rope.freq_base", "attention.key_length", "vocab_size")
        path = edited(
            {f"bitnet-b1.58.{key}": None for key in keys}, config=replace(gguf_config, num_key_value_heads=4)
        )
        config = read_checkpoint(path).config
        assert (config.num_key_value_heads, config.rope_theta, config.vocab_size) == (4, 10000.0, 24)

    @pytest.mark.parametrize(
        ("key", "value", "error", "message"),
        [
            ("split.count", 3, UnsupportedError, "one of 3 parts"),
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

    def test_scales_beside_a_weight_multiply(self, edited, make_checkpoint):
        path = edited(tensors={"blk.0.attn_q.scale": floats([0.5])})
        name = "model.layers.0.self_attn.q_proj"
        assert read_checkpoint(path).linear(name).scale == 0.5 * make_checkpoint().linear(name).scale
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
