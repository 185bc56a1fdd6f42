"""llama.cpp on the files we write: logits near ours, equal ids, announced refusals.

llama.cpp quantises activations in blocks of 256, we a whole token; one activation that falls to the other
side of a step changes all that follow. So logits agree to a few percent, and beside the tests of nearness
stand wrong models that must be far away.
"""

import logging
from dataclasses import replace

import numpy as np
import pytest

import bitnet
from bitnet.benchmark.cases import Case
from bitnet.benchmark.peers import _LlamaCpp
from bitnet.config import ModelConfig
from bitnet.errors import ResourceError
from bitnet.formats.checkpoint import Checkpoint, read_checkpoint
from bitnet.formats.gguf.container import read_container
from bitnet.formats.gguf.container_writer import Planned, write_container
from bitnet.formats.gguf.vocabulary import write_tokenizer
from bitnet.formats.gguf.writer import write_gguf
from bitnet.formats.tensor import Tensor
from bitnet.formats.tensor_names import expected_tensors
from bitnet.quantize.packing import pack_2bit
from bitnet.tokenizer import Tokenizer
from bitnet.train.tokenizer import learn_tokenizer

llama_cpp = pytest.importorskip("llama_cpp", reason="needs the extra llama-cpp")

CONFIG = ModelConfig(
    vocab_size=320,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    hidden_act="silu",
    rope_theta=500000.0,
    bos_token_id=3,
    eos_token_id=(5,),
)
IDS = np.random.default_rng(1).integers(CONFIG.vocab_size, size=50).tolist()
NEAR, FAR = 0.06, 0.3  # ||difference|| / ||logits||: measured 0.032 to 0.037 and 0.53 to 0.92
TEXTS = [
    "Once upon a time, the cat sat on the mat.",
    "  two  spaces,\ttabs\n\n\nand lines \r\n ",
    "It's 12345 o'clock; WE'LL see 3.14159!",
    "Обед, 日本語, naïve café 😀👍🏽",
    "<|endoftext|> is text here, <|eot_id|> too",
    "",
]


@pytest.fixture(scope="module")
def make():
    def make(config=CONFIG):
        """A random checkpoint whose queries and keys are large enough that positions matter."""
        random = np.random.default_rng(0)
        tensors = {}
        for name, item in expected_tensors(config).items():
            if item.kind == "packed":
                codes = random.integers(-1, 2, (4 * item.shape[0], item.shape[1]), dtype=np.int8)
                tensors[name] = Tensor.of(pack_2bit(codes))
            elif item.kind == "scale":
                scale = 2**-3 if ".q_proj" in name or ".k_proj" in name else 2**-4
                tensors[name] = Tensor.of(np.array([scale], np.float32), "BF16")
            else:
                offset = 1 if item.kind == "norm" else 0
                values = offset + random.normal(scale=0.1, size=item.shape)
                tensors[name] = Tensor.of(values.astype(np.float32), "BF16")
        return Checkpoint(config, tensors, "made", None, frozenset(config.eos_token_id))

    return make


def our_logits(path):
    model = bitnet.load_model(path)
    (logits,) = model.forward([(model.new_cache(len(IDS)), IDS)], all_logits=True)
    return logits


def their_logits(path):
    model = llama_cpp.Llama(str(path), n_ctx=256, logits_all=True, verbose=False)
    model.eval(IDS)
    return model.scores[: len(IDS)].copy()


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("ternary", "embedding"),
    [("tq2_0", "f16"), ("tq2_0", "q8_0"), ("tq2_0", "q6_k"), ("tq1_0", "f16")],
)
def test_logits(ternary, embedding, make, tmp_path):
    write_gguf(tmp_path / "model.gguf", make(), ternary, embedding)
    assert distance(their_logits(tmp_path / "model.gguf"), our_logits(tmp_path / "model.gguf")) < NEAR


@pytest.mark.parametrize("key_value_heads", [1, 4])
def test_logits_of_other_groups_of_heads(key_value_heads, make, tmp_path):
    config = replace(CONFIG, num_key_value_heads=key_value_heads, intermediate_size=768)
    write_gguf(tmp_path / "model.gguf", make(config), "tq2_0")
    assert distance(their_logits(tmp_path / "model.gguf"), our_logits(tmp_path / "model.gguf")) < NEAR


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("bitnet.rope.freq_base", 10000.0),
        ("bitnet.attention.layer_norm_rms_epsilon", 1e-2),
        ("bitnet.hidden_act", "relu2"),  # ours obeys it, llama.cpp's SiLU does not
    ],
)
def test_another_value_of_a_key_is_far_away(key, value, make, tmp_path):
    write_gguf(tmp_path / "model.gguf", make(), "tq2_0")
    container = read_container(tmp_path / "model.gguf")
    tensors = {item.name: Planned(item.type, item.shape) for item in container.tensors.values()}
    blocks = ((item.name, item.raw) for item in container.tensors.values())
    assert key in container.metadata
    write_container(tmp_path / "other.gguf", dict(container.metadata) | {key: value}, tensors, blocks)
    assert distance(our_logits(tmp_path / "other.gguf"), their_logits(tmp_path / "model.gguf")) > FAR


@pytest.mark.parametrize("split", ["gpt2", "llama3"])
def test_ids(split, make, tmp_path):
    core = learn_tokenizer([" ".join(TEXTS[:4])] * 9, 300, split)
    learned = Tokenizer(core, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    bos = learned.bos_token_id
    config = replace(CONFIG, bos_token_id=bos, eos_token_id=(bos,))
    keys = write_tokenizer(learned.to_json(), config.vocab_size, True, None, "made")
    write_gguf(tmp_path / "model.gguf", make(config), "tq2_0", tokenizer=keys)
    model = llama_cpp.Llama(str(tmp_path / "model.gguf"), n_ctx=256, verbose=False)
    assert model.token_bos() == model.token_eos() == bos
    for text in TEXTS:
        ids = learned.encode(text, add_bos=False)
        assert model.tokenize(text.encode(), add_bos=False) == ids
        assert model.tokenize(text.encode(), add_bos=True) == [bos, *ids] == learned.encode(text)
        assert model.detokenize(ids).decode() == text


@pytest.mark.parametrize(
    ("changes", "announced", "reason"),
    [
        ({"hidden_act": "relu2"}, "SiLU", "unknown model architecture: 'bitnet-b1.58'"),
        ({"tie_word_embeddings": False}, "head", "wrong number of tensors"),
        ({"attention_bias": True}, "biases", "wrong number of tensors"),
        ({"mlp_bias": True}, "biases", "wrong number of tensors"),
        ({"head_dim": 128}, "512", "wrong shape"),
    ],
)
def test_what_llama_cpp_refuses_is_announced(changes, announced, reason, make, tmp_path, caplog):
    path = tmp_path / "model.gguf"
    with caplog.at_level(logging.WARNING):
        write_gguf(path, make(replace(CONFIG, **changes)), "tq2_0")
    (line,) = caplog.messages
    assert "llama.cpp will not load" in line
    assert announced in line
    assert read_checkpoint(path).config == replace(CONFIG, **changes)
    with pytest.raises(ResourceError, match=reason):
        _LlamaCpp(str(path))


def test_nothing_is_announced_where_llama_cpp_loads(make, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        write_gguf(tmp_path / "model.gguf", make(), "tq2_0")
    assert not caplog.messages


def test_the_peer_of_bench(make, tmp_path):
    write_gguf(tmp_path / "model.gguf", make(), "tq2_0")
    peer = _LlamaCpp(str(tmp_path / "model.gguf"))
    for fact in ("TQ2_0", "architecture bitnet,", "SiLU"):
        assert fact in peer.describe()
    for case in (Case("pp", 20, 1), Case("tg", 4, 1, depth=70)):
        peer.prepare(case)
        assert peer.run() > 0
        assert peer._model.n_tokens == case.depth + case.tokens
