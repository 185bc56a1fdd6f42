import pytest

from bitnet.errors import FormatError, InputError
from bitnet.tokenizer import CHAT_TEMPLATE_2B4T, ChatTemplate
from bitnet.tokenizer import render as renderer

MESSAGES = [{"role": "user", "content": " Grüße 😀 "}, {"role": "assistant", "content": "yes"}]


def render(source, special=None):
    return ChatTemplate(source, "folder").render(MESSAGES, True, special or {})


def test_2b4t():
    assert render(CHAT_TEMPLATE_2B4T) == "User: Grüße 😀<|eot_id|>Assistant: yes<|eot_id|>Assistant: "


def test_a_foreign_template_gets_what_transformers_gives_it():
    source = """
{%- for m in messages %}
    {% if loop.first %}{{ bos_token }}{% endif %}
    {% generation %}{{ m | tojson }}{% endgeneration %}
    {% if m.role == 'user' %}{% continue %}{% endif %}
end{{ strftime_now('%%') }}
{% endfor %}"""
    assert render(source, {"bos_token": "<s>"}) == (
        '<s>{"role": "user", "content": " Grüße 😀 "}{"role": "assistant", "content": "yes"}end%\n'
    )


def test_a_template_may_refuse_messages():
    with pytest.raises(InputError, match=r"^folder: the template refuses the messages: only one at a time$"):
        render("{{ raise_exception('only one\nat a time') }}")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% if", "TemplateSyntaxError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ 'x' | no_filter }}", "TemplateAssertionError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "TypeError"),
        ("{% for i in range(10**9) %}{% endfor %}", "OverflowError"),
        ("{{ 'a' * 10**10 }}", "MemoryError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ raise_exception.__globals__['json'] }}", "SecurityError"),
    ],
)
def test_broken_and_hostile_templates_give_one_line(source, words):
    with pytest.raises(FormatError, match=f"^folder: .*{words}") as raised:
        render(source)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 7 ** (7 ** (7 ** 7)) }}",
    ],
)
def test_endless_templates_end(source, monkeypatch):
    monkeypatch.setattr("bitnet.tokenizer.chat_template._SECONDS", 1)
    with pytest.raises(FormatError, match="takes more than 1 s"):
        render(source)


def test_error_messages_carry_no_terminal_codes():
    with pytest.raises(InputError) as raised:
        render("{{ raise_exception('\x1b[2J\x07 gone') }}")
    assert "\x1b" not in str(raised.value)
    assert "gone" in str(raised.value)


def test_an_oversized_template_is_refused():
    with pytest.raises(FormatError, match="characters"):
        ChatTemplate("x" * (1 << 20) + "x", "folder")


def test_a_system_without_a_limit_renders_all_the_same(monkeypatch):
    """macOS refuses to bound the address space."""
    resource = pytest.importorskip("resource")

    def refuse(kind, limits):
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    renderer._limit(4, 1 << 20)


def test_a_renderer_that_does_not_start_is_no_fault_of_the_template(monkeypatch):
    monkeypatch.setattr(renderer, "__file__", __file__ + ".missing")
    with pytest.raises(FormatError, match=r"cannot be rendered: .*No such file"):
        ChatTemplate("{{ messages }}", "m").render([{"role": "user", "content": "x"}], True, {})
