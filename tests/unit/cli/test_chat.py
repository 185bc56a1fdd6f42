"""`bitnet chat`: turns and commands through a pipe, and keys at a terminal."""

import os
import select
import signal
import subprocess
import sys

import pytest

import bitnet as package
from bitnet.generate import Chat

# Random weights write random bytes: enough of them that some are printable.
OPTIONS = ("--temperature", 1, "--seed", 1, "--max-tokens", 40)


def test_each_line_is_a_turn_of_one_conversation(bitnet, chat_model):
    result = bitnet("chat", "--model", chat_model, *OPTIONS, stdin=b"Hello\n\n  Again  \n")
    conversation = Chat(package.load_model(chat_model))
    params = package.SamplingParams(temperature=1, seed=1, max_tokens=40)
    expected = ["".join(conversation.send(text, params)) for text in ("Hello", "Again")]
    assert result.code == 0
    assert result.out == "".join(f"{answer}\n" for answer in expected)


def test_reset_and_system(bitnet, chat_model):
    def answers(script):
        return bitnet("chat", "--model", chat_model, *OPTIONS, stdin=script).out

    plain = answers(b"Hello\n")
    assert answers(b"Hello\n/reset\nHello\n") == plain * 2
    pirate = answers(b"/system Talk like a pirate.\nHello\n")
    assert pirate != plain
    assert answers(b"/system Talk like a pirate.\n/system\nHello\n") == plain
    with_option = bitnet(
        "chat", "--model", chat_model, *OPTIONS, "--system-prompt", "Talk like a pirate.", stdin=b"Hello\n"
    )
    assert with_option.out == pirate


def test_exit_and_unknown_commands(bitnet, chat_model):
    result = bitnet("chat", "--model", chat_model, *OPTIONS, stdin=b"/sing\n/help\n/exit\nHello\n")
    assert result.code == 0
    assert result.out == ""
    assert "/sing is no command" in result.err
    assert "/reset" in result.err


def test_without_template_it_continues_and_says_so_once(bitnet, text_model):
    result = bitnet("chat", "--model", text_model, *OPTIONS, stdin=b"Hello\nHello\n")
    half = len(result.out) // 2
    first, second = result.out[:half], result.out[half:]
    assert first == second  # every text by itself
    assert result.err.count("continues what you write") == 1


def test_refuses_a_model_without_tokenizer(bitnet, ids_model):
    assert "tokenizer" in bitnet("chat", "--model", ids_model).refusal


def test_control_c_at_the_prompt_drops_the_line(bitnet, chat_model, monkeypatch):
    keys = iter([KeyboardInterrupt, "/sing", KeyboardInterrupt, EOFError])

    def typed(prompt):
        key = next(keys)
        if isinstance(key, str):
            return key
        raise key

    monkeypatch.setattr("builtins.input", typed)
    result = bitnet("chat", "--model", chat_model, terminal=True)
    assert result.code == 0
    assert "/sing is no command" in result.err
    assert next(keys, None) is None


class Terminal:
    """The program at a pseudo-terminal."""

    def __init__(self, *arguments):
        import fcntl
        import pty
        import termios

        def take_terminal():
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job is started without it
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.screen, child = pty.openpty()
        self.program = subprocess.Popen(
            [sys.executable, "-m", "bitnet", *map(str, arguments)],
            stdin=child, stdout=child, stderr=child, start_new_session=True,
            preexec_fn=take_terminal,
        )  # fmt: skip
        os.close(child)
        self.seen = ""

    def type(self, keys):
        os.write(self.screen, keys)

    def expect(self, text):
        """Read until `text` appears behind what was expected before."""
        while text not in self.seen:
            ready, _, _ = select.select([self.screen], [], [], 60)
            assert ready, f"no {text!r} in {self.seen!r}"
            self.seen += os.read(self.screen, 4096).decode(errors="replace")
        self.seen = self.seen.partition(text)[2]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_keys_at_a_terminal(chat_model):
    """Ctrl-C stops an answer that would take minutes and not the program; Ctrl-D leaves."""
    terminal = Terminal("chat", "--model", chat_model, "--seed", 1)
    try:
        terminal.expect("> ")
        terminal.type(b"Hello\n")
        terminal.expect("Hello\r\n")
        while len(terminal.seen) < 50:  # the answer runs
            terminal.seen += os.read(terminal.screen, 64).decode(errors="replace")
        terminal.type(b"\x03")
        terminal.expect("interrupted")
        terminal.expect("> ")
        terminal.type(b"/sing\n")
        terminal.expect("/sing is no command")
        terminal.expect("> ")
        terminal.type(b"\x04")
        assert terminal.program.wait(timeout=60) == 0
    finally:
        terminal.program.kill()
        terminal.program.wait()
        os.close(terminal.screen)


def test_a_pipe_that_is_no_utf8(bitnet, chat_model):
    refused = bitnet("chat", "--model", chat_model, "--max-tokens", 1, stdin=b"caf\xe9\n")
    assert "not UTF-8 text (at byte 3" in refused.err
    assert refused.code == 2
