"""Tokenizers through GGUF's keys and back: the same ids for every text, and refusals for what has no name "
"there."""

import json
import logging

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from bitnet.config import PRESETS, ModelConfig
from bitnet.errors import BitnetError, FormatError, UnsupportedError
from bitnet.formats.gguf.container_writer import Int32Array
from bitnet.formats.gguf.metadata import Metadata
from bitnet.formats.gguf.vocabulary import LLAMA3_PATTERN, read_tokenizer, write_tokenizer
from bitnet.load import embedded_model
from bitnet.tokenizer import Tokenizer as OurTokenizer
from bitnet.tokenizer import tiktoken_file

TEXTS = [
    "",
    "Hello world",
    "  the   cat\n\n sat",
    "don't DON'T 12345",
    "日本語 😀 Обед",
    "<eot> <bos>the",
    "\t\r\nx",
]


def config(vocab_size):
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )


def train(llama3, controls_first, extra=()):
    """A small byte-level BPE of either kind, its control tokens before or behind the others."""
    core = Tokenizer(models.BPE(ignore_merges=llama3))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not llama3)
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), "isolated")
    core.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level]) if llama3 else byte_level
    core.decoder = decoders.ByteLevel()
    controls = [AddedToken(name, special=True, normalized=False) for name in ("<bos>", "<eot>")]
    core.train_from_iterator(
        ["the cat sat on the mat; don't Обед 日本語 😀 123 "] * 9,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=controls if controls_first else [],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if not controls_first:
        core.add_special_tokens(controls)
    core.add_tokens(list(extra))
    return core


def through_gguf(core, vocab_size=400, add_bos=True, template=None, **changes):
    keys = write_tokenizer(core.to_str(), vocab_size, add_bos, template, "here")
    keys["tokenizer.ggml.bos_token_id"] = core.token_to_id("<bos>")
    return read_tokenizer(as_metadata(keys | changes), config(vocab_size))


def as_metadata(keys):
    """What reading the file would give."""
    from bitnet.formats.gguf.container import _Cursor, _read_value
    from bitnet.formats.gguf.container_writer import _value

    values = {}
    for key, value in keys.items():
        if value is None:
            continue
        content = _value(value)
        values[key] = _read_value(_Cursor(content[4:], "here"), int.from_bytes(content[:4], "little"), key)
    return Metadata(values, "here")


@pytest.mark.parametrize("llama3", [False, True])
@pytest.mark.parametrize("controls_first", [False, True])
def test_the_same_ids(llama3, controls_first):
    core = train(llama3, controls_first, extra=[AddedToken("<tool>", special=False, normalized=False)])
    files = through_gguf(core)
    ours = OurTokenizer.from_json(core.to_str(), {"bos_token": "<bos>"})
    found = OurTokenizer.from_json(files.tokenizer_json, files.settings)
    assert found.vocab_size == ours.vocab_size
    for text in [*TEXTS, "a<tool>b"]:
        for special in (False, True):
            ids = found.encode(text, special=special)
            assert ids == ours.encode(text, special=special)
            assert found.decode(ids) == ours.decode(ids)
    assert found.bos_token_id == core.token_to_id("<bos>")
    written = json.loads(files.tokenizer_json)
    assert {token["content"]: token["id"] for token in written["added_tokens"]} == {
        name: core.token_to_id(name) for name in ("<bos>", "<eot>", "<tool>")
    }


def test_the_embedded_tokenizer():
    folder = embedded_model()
    ours = OurTokenizer.from_directory(folder)
    keys = write_tokenizer(ours.to_json(), 4096, True, None, "here") | {"tokenizer.ggml.bos_token_id": 0}
    assert keys["tokenizer.ggml.pre"] == "gpt-2"
    files = read_tokenizer(as_metadata(keys), config(4096))
    found = OurTokenizer.from_json(files.tokenizer_json, files.settings)
    for text in TEXTS:
        assert found.encode(text) == ours.encode(text)


def test_the_pattern_is_llama_3_s():
    assert LLAMA3_PATTERN == tiktoken_file.LLAMA3_PATTERN


def test_a_file_without_pre_is_llama_3():
    core = train(llama3=True, controls_first=False)
    pre = {"tokenizer.ggml.pre": None, "tokenizer.ggml.add_bos_token": None}
    assert through_gguf(core, **pre) == through_gguf(core)
    assert through_gguf(core).settings["add_bos_token"] is True


def test_no_bos():
    files = through_gguf(train(False, True), add_bos=False)
    assert files.settings["add_bos_token"] is False
    assert OurTokenizer.from_json(files.tokenizer_json, files.settings).bos_token_id is None
    silent = through_gguf(train(False, True), **{"tokenizer.ggml.add_bos_token": None})
    assert silent.settings["add_bos_token"] is False  # llama.cpp's default for GPT-2's kind


@pytest.mark.parametrize("name", [":", "$A", "a:1", "$", "bos"])
def test_beginnings_of_any_spelling(name):
    core = train(False, True, extra=[AddedToken(name, special=True, normalized=False)])
    files = through_gguf(core, **{"tokenizer.ggml.bos_token_id": core.token_to_id(name)})
    found = OurTokenizer.from_json(files.tokenizer_json, files.settings)
    assert found.encode("the cat")[0] == found.bos_token_id == core.token_to_id(name)


def test_ids_without_a_token_are_filled_and_left_out_again():
    core = train(False, True, extra=["[PAD330]"])
    keys = write_tokenizer(core.to_str(), 340, True, None, "here")
    tokens, kinds = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"].values
    assert len(tokens) == len(set(tokens)) == len(kinds) == 340
    assert tokens[330] == "[PAD330]_"
    assert kinds[330] == 5
    assert kinds[:2] == [3, 3]
    assert (
        json.loads(through_gguf(core, 340).tokenizer_json)["model"]["vocab"].keys().isdisjoint(tokens[322:])
    )


@pytest.mark.parametrize("kind", [None, "none", "no_vocab"])
def test_no_tokenizer(kind):
    keys = {} if kind is None else {"tokenizer.ggml.model": kind}
    assert read_tokenizer(as_metadata(keys), config(4)) is None


GOOD = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["a", "b", "ab", "<x>"],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.pre": "gpt-2",
}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": "llama"}, UnsupportedError, "model is 'llama'"),
        ({"pre": "qwen2"}, UnsupportedError, "pre is 'qwen2'"),
        ({"tokens": None}, BitnetError, "tokens is missing"),
        ({"tokens": ["a", "b", "ab", "a"]}, FormatError, "tokens names a token twice"),
        ({"tokens": list("abcdef")}, FormatError, "tokens has 6 entries; at most 4"),
        ({"tokens": ["b", "ab"]}, FormatError, "merges joins 'a' and"),
        ({"merges": ["ab"]}, FormatError, "merges holds 'ab'"),
        ({"merges": ["a b c"]}, FormatError, "merges holds 'a b c'"),
        ({"merges": ["a c"]}, FormatError, "merges joins 'a' and"),
        ({"merges": ["a b"] * 9}, FormatError, "merges has 9 entries; at most 7"),
        ({"merges": ["ab ab"]}, FormatError, "merges joins 'ab' and 'ab'"),
        ({"merges": ["<x> <x>"]}, FormatError, "merges joins '<x>' and '<x>'"),
        ({"merges": None}, BitnetError, "merges is missing"),
        ({"bos_token_id": 4}, FormatError, "bos_token_id is 4"),
        ({"bos_token_id": 3, "token_type": Int32Array([1, 1, 1, 5])}, FormatError, "marked as unused"),
        ({"token_type": "x"}, BitnetError, "token_type is 'x'"),
        ({"add_bos_token": 1}, BitnetError, "add_bos_token is 1"),
    ],
)
def test_impossible_keys(change, error, message):
    assert read_tokenizer(as_metadata(GOOD), config(4)) is not None
    keys = GOOD | {f"tokenizer.ggml.{key}": value for key, value in change.items()}
    with pytest.raises(error, match=message):
        read_tokenizer(as_metadata(keys), config(4))


def test_invalid_utf_8():
    keys = as_metadata(GOOD)
    tokens = keys["tokenizer.ggml.tokens"]
    damaged = type(tokens)(tokens.buffer.replace(b"<x>", b"<\xff>"), tokens.count, tokens.start, tokens.end)
    with pytest.raises(FormatError, match=r"tokens holds a string that is not UTF-8"):
        read_tokenizer(Metadata({**keys, "tokenizer.ggml.tokens": damaged}, "here"), config(4))


def altered(change, llama3=False):
    core = train(llama3, True)
    change(core)
    return core


def with_a_word_no_merge_makes(llama3, ignore_merges):
    """`b c` is merged before `a b`, so that `abc` becomes `a bc` unless words are taken whole."""
    vocab = {text: number for number, text in enumerate(("a", "b", "c", "bc", "ab", "abc"))}
    merges = [("b", "c"), ("a", "b"), ("ab", "c")]
    core = altered(lambda core: None, llama3)
    core.model = models.BPE(vocab=vocab, merges=merges, ignore_merges=ignore_merges)
    assert len(core.encode("abc").ids) == (1 if ignore_merges else 2)
    return core


@pytest.mark.parametrize("llama3", [False, True])
def test_taking_words_whole_where_it_makes_no_difference(llama3):
    """llama.cpp always does it in Llama 3's kind and never in GPT-2's."""
    core = altered(lambda core: setattr(core.model, "ignore_merges", not llama3), llama3)
    found = OurTokenizer.from_json(through_gguf(core).tokenizer_json)
    ours = OurTokenizer.from_json(core.to_str())
    for text in TEXTS:
        assert found.encode(text, add_bos=False) == ours.encode(text, add_bos=False)


@pytest.mark.parametrize(
    "core",
    [
        Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
        altered(lambda core: setattr(core, "normalizer", normalizers.NFC())),
        altered(lambda core: setattr(core, "pre_tokenizer", pre_tokenizers.Whitespace())),
        altered(lambda core: setattr(core, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True))),
        with_a_word_no_merge_makes(llama3=False, ignore_merges=True),
        with_a_word_no_merge_makes(llama3=True, ignore_merges=False),
    ],
    ids=["word level", "normaliser", "pre-tokeniser", "prefix space", "whole words", "merges only"],
)
def test_what_gguf_has_no_name_for(core):
    with pytest.raises(UnsupportedError, match="another way"):
        write_tokenizer(core.to_str(), 400, True, None, "here")


class TestTemplate:
    def test_is_kept(self):
        assert through_gguf(train(False, True), template="{{ 1 }}").settings["chat_template"] == "{{ 1 }}"
        assert "chat_template" not in through_gguf(train(False, True)).settings

    @pytest.mark.parametrize(
        ("template", "vocab_size"),
        [
            ("{{ 'Human: ' + message['content'] + '\\n\\nBITNETAssistant: ' + eos_token }}", 4),
            ("{{ 'Human: ' + message['content'] }}", PRESETS["2b4t"].vocab_size),
        ],
    )
    def test_bitnet_cpp_s_is_replaced_with_a_notice(self, template, vocab_size, caplog):
        keys = GOOD | {"tokenizer.chat_template": template}
        with caplog.at_level(logging.WARNING):
            files = read_tokenizer(as_metadata(keys), config(vocab_size))
        assert "chat_template" not in files.settings
        assert "here: its chat template" in caplog.text

    def test_another_model_may_say_human(self, caplog):
        keys = GOOD | {"tokenizer.chat_template": "{{ 'Human: ' }}"}
        assert read_tokenizer(as_metadata(keys), config(4)).settings["chat_template"] == "{{ 'Human: ' }}"
        assert not caplog.text


def test_llama_3_s_vocabulary(tmp_path, caplog):
    """The real ranks, from the test dependency's package: ids, and 2B4T's template in place of a wrong "
    "one."""
    llama_models = pytest.importorskip("llama_models")
    from pathlib import Path

    path = Path(llama_models.__file__).parent / "llama3" / "tokenizer.model"
    core = tiktoken_file.read_tiktoken(path)
    wrong = "{{ 'Human: ' }}"
    keys = write_tokenizer(core.to_str(), 128256, True, wrong, "here")
    assert keys["tokenizer.ggml.pre"] == "llama-bpe"
    keys |= {"tokenizer.ggml.bos_token_id": 128000, "tokenizer.ggml.pre": None}
    files = read_tokenizer(as_metadata(keys), config(128256))
    found = OurTokenizer.from_json(files.tokenizer_json, files.settings)
    ours = OurTokenizer(core, {"bos_token": "<|begin_of_text|>"})
    for text in [*TEXTS, "<|eot_id|> as text"]:
        assert found.encode(text) == ours.encode(text)
    messages = [{"role": "user", "content": "Hi"}]
    assert found.render_chat(messages) == "User: Hi<|eot_id|>Assistant: "
    assert found.chat(messages) == ours.chat(messages)
