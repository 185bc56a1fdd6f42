import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from bitnet.errors import FormatError, InputError, UnsupportedError
from bitnet.tokenizer import Tokenizer

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.content | trim }}<eot>{% endfor %}"
USER = [{"role": "user", "content": " the cat "}]


def write(folder, core, **settings):
    core.save(str(folder / "tokenizer.json"))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def test_bos_comes_once_whoever_adds_it(byte_level, tmp_path):
    by_file = Tokenizer.from_directory(write(tmp_path, byte_level()))
    by_us = Tokenizer(byte_level(post_processor=False), {"bos_token": "<bos>"})
    by_both = Tokenizer(byte_level(), {"bos_token": {"content": "<bos>"}})
    for tokenizer in (by_file, by_us, by_both):
        assert tokenizer.bos_token_id == 0
        ids = tokenizer.encode("the cat")
        assert ids.count(0) == 1
        assert ids[0] == 0
        assert tokenizer.encode("the cat", add_bos=False) == ids[1:]
        assert tokenizer.encode("<bos>the cat", special=True) == ids


@pytest.mark.parametrize(
    "settings", [{}, {"bos_token": None}, {"bos_token": "<bos>", "add_bos_token": False}]
)
def test_no_bos_where_none_is_wanted(byte_level, settings):
    tokenizer = Tokenizer(byte_level(post_processor=False), settings)
    assert tokenizer.bos_token_id is None
    assert 0 not in tokenizer.encode("the cat")


def test_control_tokens_in_text_are_text_unless_asked_for(byte_level):
    tokenizer = Tokenizer(byte_level())
    plain = tokenizer.encode("a<eot>b", add_bos=False)
    assert 1 not in plain
    assert tokenizer.decode(plain) == "a<eot>b"
    special = tokenizer.encode("a<eot>b", add_bos=False, special=True)
    assert special[1] == 1
    assert tokenizer.decode(special) == "a<eot>b"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["<eot>", "<wide>", "<", "eot>", " ", "the cat", "é"]), max_size=8))
def test_control_tokens_are_found_as_the_library_finds_them(byte_level, parts):
    core = byte_level()
    core.add_special_tokens([AddedToken("<wide>", lstrip=True, rstrip=True, normalized=False)])
    text = "".join(parts)
    expected = core.encode(text, add_special_tokens=False).ids
    assert Tokenizer(core).encode(text, add_bos=False, special=True) == expected


def test_published_truncation_and_padding_are_off(byte_level, tmp_path):
    core = byte_level()
    core.enable_truncation(4)
    core.enable_padding(length=50)
    tokenizer = Tokenizer.from_directory(write(tmp_path, core))
    text = "the cat sat on the mat"
    assert tokenizer.decode(tokenizer.encode(text, add_bos=False)) == text


def test_vocab_size_is_the_highest_id_and_one(byte_level):
    core = byte_level()
    assert Tokenizer(core).vocab_size == core.get_vocab_size()


def test_a_conversation_keeps_only_the_templates_control_tokens(byte_level, tmp_path):
    tokenizer = Tokenizer.from_directory(
        write(tmp_path, byte_level(), bos_token="<bos>", chat_template=TEMPLATE)
    )
    messages = [{"role": "user", "content": " <eot>the<bos> <e"}, {"role": "user", "content": "ot> cat"}]
    ids = tokenizer.chat(messages)
    assert [token for token in ids if token < 2] == [0, 1, 1]
    assert (
        tokenizer.decode(ids) == "<bos><eot>the<bos> <e<eot>ot> cat<eot>" == tokenizer.render_chat(messages)
    )


def test_where_the_template_is_found(byte_level, tmp_path):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "listed"}]
    folder = write(tmp_path, byte_level(), chat_template=named)
    assert Tokenizer.from_directory(folder).render_chat(USER) == "listed"
    (folder / "chat_template.jinja").write_text("own file")
    assert Tokenizer.from_directory(folder).render_chat(USER) == "own file"


def test_without_a_template_there_is_no_chat(byte_level):
    with pytest.raises(UnsupportedError, match="no chat template"):
        Tokenizer(byte_level()).chat(USER)


def test_a_folder_without_tokenizer(tmp_path):
    assert Tokenizer.from_directory(tmp_path) is None


BPE = '{"model": {"type": "BPE", "vocab": %s, "merges": %s}}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"version": "1.0"}',
        b'{"model": {"type": "BPE"}}',
        (BPE % ("{}", "[]")).encode(),
        (BPE % ('{"a": 99999999999}', "[]")).encode(),
        (BPE % ('{"a": -1}', "[]")).encode(),
        (BPE % ('{"a": 0}', '["a b"]')).encode(),
        b"[" * 100_000,
    ],
)
def test_damaged_files_give_one_line(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(FormatError, match=re.escape(str(tmp_path))) as raised:
        Tokenizer.from_directory(tmp_path)
    assert "\n" not in str(raised.value)


def test_a_panic_of_the_library_is_a_damaged_file(tmp_path, capfd):
    (tmp_path / "tokenizer.json").write_text(BPE % ('{"a": 0, "b": 1}', '[["a", "b"], ["", "a"]]'))
    with pytest.raises(FormatError, match="not a usable tokenizer"):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{", "not readable as JSON"),
        ("[]", "expected a JSON object"),
        ('{"bos_token": "<nope>"}', "bos_token '<nope>' is not in the vocabulary"),
        ('{"bos_token": 3}', "bos_token 3 is not in the vocabulary"),
        ('{"chat_template": 5}', "chat_template is int"),
    ],
)
def test_damaged_settings_are_named(byte_level, tmp_path, settings, words):
    write(tmp_path, byte_level())
    (tmp_path / "tokenizer_config.json").write_text(settings)
    with pytest.raises(FormatError, match=words):
        Tokenizer.from_directory(tmp_path)


@pytest.mark.parametrize("ids", [[-1], [2**32], ["a"]])
def test_impossible_ids_are_refused(byte_level, ids):
    with pytest.raises(InputError, match="cannot be decoded"):
        Tokenizer(byte_level()).decode(ids)


def test_half_a_surrogate_pair_is_refused(byte_level):
    with pytest.raises(InputError, match="cannot be encoded"):
        Tokenizer(byte_level()).encode("\ud83d")


def test_a_special_token_as_long_as_a_book_is_refused(byte_level):
    core = byte_level()
    core.add_special_tokens([AddedToken("x" * 1001, special=True)])
    with pytest.raises(FormatError, match="has 1,001 characters"):
        Tokenizer(core)
