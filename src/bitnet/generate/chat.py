"""A conversation with a model: it keeps the messages, and the cache, so that a turn runs only what is new.

The ids of a turn are those of the last turn's prompt, of the answer as it was generated, and of the text the
template adds after it. Where the template changes what came before (it trims answers, for example), the
conversation is encoded anew, and the cache is cut where the ids begin to differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bitnet.errors import InputError, UnsupportedError
from bitnet.generate.loop import Generation, Stream
from bitnet.generate.model import Model
from bitnet.generate.sampling import SamplingParams
from bitnet.tokenizer import RenderedChat


class Chat:
    """A multi-turn conversation; one turn at a time.

    Attributes:
        system: the system prompt, None for none; may be changed at any time.
    Raises:
        UnsupportedError: the model has no tokenizer or no chat template.
    """

    def __init__(self, model: Model, system: str | None = None) -> None:
        if model.tokenizer is None or model.tokenizer.chat_template is None:
            raise UnsupportedError("the model has no chat template; it continues text, use `generate`")
        self.system = system
        self._model = model
        self._tokenizer = model.tokenizer
        self._cache = model.new_cache(model.config.max_position_embeddings)
        self._history: list[dict[str, str]] = []  # turns before the last
        self._question: dict[str, str] | None = None  # the last turn's
        self._rendered = RenderedChat("", {})  # what `_prompt` encodes
        self._prompt: list[int] = []
        self._answer: Stream | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation so far, the system prompt first, an unfinished answer as far as it came."""
        return self._with_system(self._history + self._last_turn())

    def reset(self) -> None:
        """Forget the conversation; the system prompt stays."""
        self._history, self._question = [], None

    def send(self, text: str, params: SamplingParams | None = None) -> Stream:
        """Ask; iterate over the answer.

        The answer belongs to the conversation as far as it was iterated over, so stopping early is fine. A
        question whose answer has no text is forgotten. An answer still running ends here.

        Raises:
            InputError: the conversation no longer fits the context, or the template refuses it. It is then
                as before the call.
        """
        history = self._history + self._last_turn()
        question = {"role": "user", "content": text}
        rendered = self._tokenizer.seal_chat(self._with_system([*history, question]))
        ids = self._encode(rendered)
        context = self._model.config.max_position_embeddings
        if len(ids) > context:
            raise InputError(
                f"the conversation has {len(ids)} tokens, the model's context holds {context}; reset it"
            )
        if self._answer is not None:
            self._answer.close()
        self._cache.truncate(self._in_common(ids))
        answer = Stream(self._model, ids, params or SamplingParams(), cache=self._cache)
        self._history, self._question = history, question
        self._rendered, self._prompt, self._answer = rendered, ids, answer
        return answer

    def _with_system(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        return messages if self.system is None else [{"role": "system", "content": self.system}, *messages]

    def _last_turn(self) -> list[dict[str, str]]:
        text = "" if self._answer is None else self._answer.result.text
        if self._question is None or not text:
            return []
        return [self._question, {"role": "assistant", "content": text}]

    def _encode(self, rendered: RenderedChat) -> list[int]:
        # Where the last turn is not part of the conversation, a question can only look like it.
        if self._answer is not None and self._last_turn():
            result = self._answer.result
            answer = list(result.ids[:-1] if result.stop_reason == "stop_token" else result.ids)
            so_far = self._rendered.text + result.text
            # A stop string or an interrupt leaves ids without text.
            if rendered.text.startswith(so_far) and self._tokenizer.decode(answer) == result.text:
                rest = RenderedChat(rendered.sealed[len(so_far) :], rendered.seals)  # a seal is one character
                return self._prompt + answer + self._tokenizer.encode_chat(rest, add_bos=False)
        return self._tokenizer.encode_chat(rendered)

    def _in_common(self, ids: list[int]) -> int:
        """How many ids stand in the cache already; one is left to run, for its logits."""
        held = self._prompt + (list(self._answer.ids) if self._answer is not None else [])
        pairs = zip(held[: self._cache.length], ids[:-1], strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), min(self._cache.length, len(ids) - 1))


def chat(
    model: Model,
    messages: str | Sequence[Mapping[str, str]],
    params: SamplingParams | None = None,
    *,
    system: str | None = None,
) -> Generation:
    """The answer to a conversation. `Chat` keeps one going without running it anew each turn.

    Args:
        messages: a question, or {"role": "system" | "user" | "assistant", "content": text}, oldest first.
            Control tokens in contents are plain text.
        params: sampling and limits; None takes the defaults.
        system: a system prompt to put first.
    Raises:
        UnsupportedError: the model has no tokenizer or no chat template.
        InputError: the messages are malformed, refused by the template, or too long for the context.
    """
    if model.tokenizer is None:
        raise UnsupportedError("the model has no tokenizer.json, so it cannot chat; use `generate` with ids")
    turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    if system is not None:
        turns = [{"role": "system", "content": system}, *turns]
    running = Stream(model, model.tokenizer.chat(turns), params or SamplingParams())
    for _ in running:
        pass
    return running.result
