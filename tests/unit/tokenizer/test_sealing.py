import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet.errors import InputError
from bitnet.tokenizer.sealing import ControlTokens, RenderedChat

TOKENS = ["<eot>", "<eo", "aba", "]]"]
CONTENT = st.text("<eot>ab] ", max_size=12)


@given(st.lists(CONTENT, min_size=1, max_size=4), st.booleans())
def test_no_control_token_begins_or_ends_in_a_content(contents, trim):
    """Whatever a template puts between the contents, and be it nothing."""
    messages = [{"role": "user", "content": content} for content in contents]
    sealed, seals = ControlTokens(TOKENS).seal(messages)
    parts = [message["content"].strip() if trim else message["content"] for message in sealed]
    for joint in ("", "<", "<eo", "t>", "a", "]"):
        text, theirs = joint, [False] * len(joint)
        for part in parts:
            text += part + joint
            theirs += [True] * len(part) + [False] * len(joint)
        for token in TOKENS:
            for at in range(len(text)):
                if text.startswith(token, at):
                    assert not theirs[at]
                    assert not theirs[at + len(token) - 1]
    assert [RenderedChat(m["content"], seals).text for m in sealed] == contents


def test_harmless_contents_are_untouched():
    messages = [{"role": "user", "content": "1 < 2, <b>bold</b>, [1]\U00100000"}]
    assert ControlTokens(["<eot>"]).seal(messages) == (messages, {})


def test_private_use_characters_of_a_content_survive():
    messages = [{"role": "user", "content": "\U00100000<eot>\U00100001"}]
    sealed, seals = ControlTokens(["<eot>"]).seal(messages)
    assert seals == {"\U00100002": "<"}
    assert RenderedChat(sealed[0]["content"], seals).text == messages[0]["content"]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "empty"),
        (["hi"], r"messages\[0\] is not of the form"),
        ([{"role": "user"}], r"messages\[0\] is not of the form"),
        ([{"role": "user", "content": "x", "name": "y"}], r"messages\[0\] is not of the form"),
        ([{"role": "user", "content": "x"}, {"role": "<eot>", "content": "x"}], r"messages\[1\]: role is"),
        ([{"role": "user", "content": None}], r"messages\[0\]: content is NoneType"),
    ],
)
def test_malformed_messages_are_named(messages, words):
    with pytest.raises(InputError, match=words):
        ControlTokens([]).seal(messages)
