"""`bitnet chat`: a conversation in the terminal, or one turn a line from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from bitnet.cli import options
from bitnet.errors import BitnetError, InputError

if TYPE_CHECKING:
    from bitnet.generate import Chat, Model, SamplingParams, Stream

_HELP = """\
/system TEXT   give the model a role; without TEXT, take it away
/reset         forget the conversation
/help          show this
/exit          leave (Ctrl-D too)
Ctrl-C stops an answer."""


def chat(
    system_prompt: Annotated[
        str | None, typer.Option("--system-prompt", "-s", metavar="TEXT", help="The model's role.")
    ] = None,
    max_tokens: options.MaxTokens = None,
    model: options.Model = None,
    engine: options.Engine = "cpu",
    threads: options.Threads = None,
    kv_dtype: options.KvDtype = "auto",
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    min_p: options.MinP = None,
    repeat_penalty: options.RepeatPenalty = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
) -> None:
    """Talk with a model. From a pipe, each line is a turn.

    A model without a chat template, such as the embedded one, continues each text instead.
    """
    from bitnet.cli.sampling import sampling_params
    from bitnet.formats.hub import resolve
    from bitnet.load import embedded_model, load_model

    directory = embedded_model() if model is None else resolve(model)
    loaded = load_model(directory, engine, threads, kv_dtype=kv_dtype)
    params = sampling_params(
        directory,
        # An answer ends where the model ends it; only the context sets a limit.
        max_tokens=loaded.config.max_position_embeddings if max_tokens is None else max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repeat_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    _Session(loaded, params, system_prompt).run()


class _Session:
    """One run of `bitnet chat`."""

    def __init__(self, model: Model, params: SamplingParams, system: str | None) -> None:
        self._model, self._params = model, params
        self._chat = self._open_chat(system)
        self._at_terminal = sys.stdin.isatty()

    def _open_chat(self, system: str | None) -> Chat | None:
        """The conversation; None for a model that only continues text."""
        from bitnet.cli.terminal import note
        from bitnet.errors import UnsupportedError
        from bitnet.generate import Chat

        if self._model.tokenizer is None:
            raise UnsupportedError(
                "the model has no tokenizer.json, so it cannot talk; use `bitnet generate --ids`"
            )
        if self._model.tokenizer.chat_template is not None:
            return Chat(self._model, system)
        note("This model has no chat template: it continues what you write.")
        return None

    def run(self) -> None:
        """Take turns until the input ends."""
        from bitnet.cli.terminal import note

        if self._at_terminal:
            note("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves.")
        for line in self._lines():
            if line == "/exit":
                return
            try:
                self._take(line)
            except KeyboardInterrupt:
                # A second Ctrl-C, or one that came too late to stop anything.
                if not self._at_terminal:
                    raise
            except BitnetError as error:
                # Somebody at a terminal can mend it; a pipe cannot.
                if not self._at_terminal:
                    raise
                note(f"error: {error}")

    def _lines(self) -> Iterator[str]:
        if not self._at_terminal:
            yield from filter(None, map(str.strip, map(_decoded, sys.stdin.buffer)))
            return
        import readline  # noqa: F401  (makes input() edit its line and remember the earlier ones)

        while True:
            try:
                line = input("> ").strip()
            except KeyboardInterrupt:
                print()  # drops the line, as in a shell
                continue
            except EOFError:
                print()
                return
            if line:
                yield line

    def _take(self, line: str) -> None:
        from bitnet.cli.terminal import note

        command, _, argument = line.partition(" ")
        if not command.startswith("/"):
            self._answer(line)
        elif command == "/help":
            note(_HELP)
        elif command == "/reset" and self._chat is not None:
            self._chat.reset()
            note("The conversation is forgotten.")
        elif command == "/system" and self._chat is not None:
            self._chat.system = argument.strip() or None
            note("The role is set." if argument.strip() else "The role is taken away.")
        elif command in ("/reset", "/system"):
            note(f"{command} does nothing here: this model continues each text by itself.")
        else:
            note(f"{command} is no command; /help lists them.")

    def _answer(self, text: str) -> None:
        from bitnet.cli.terminal import note, speed, write

        answer = self._ask(text)
        try:
            for piece in answer:
                write(piece)
        except KeyboardInterrupt:
            if not self._at_terminal:
                raise
        write("\n")
        if self._at_terminal:
            note(speed(answer.result) + "\n")

    def _ask(self, text: str) -> Stream:
        from bitnet.generate import stream

        if self._chat is not None:
            return self._chat.send(text, self._params)
        return stream(self._model, text, self._params)


def _decoded(line: bytes) -> str:
    """A line from a pipe, whose encoding is not the terminal's affair."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text (at byte {error.start} of a line)") from None
