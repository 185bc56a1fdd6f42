"""The model type `bitnet` for lm-evaluation-harness.

The harness knows its model types from a list of its own and looks for no others, so its program starts here:

    python -m bitnet.evaluate.lm_eval run --model bitnet --model_args pretrained=PATH_OR_ID --tasks arc_easy

takes every argument that `lm_eval` takes. In Python, importing this module is enough:

    import lm_eval, bitnet.evaluate.lm_eval
    lm_eval.simple_evaluate(model="bitnet", model_args="pretrained=PATH_OR_ID", tasks=["arc_easy"])

Needs the extra `lm-eval`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from bitnet.errors import InputError
from bitnet.evaluate.perplexity import rolling_scores
from bitnet.evaluate.scoring import Score, encode_pair, prefix_token, score_ids
from bitnet.generate import SamplingParams, generate
from bitnet.load import Engine, load_model

_BATCH_SIZE = 16
_MAX_NEW_TOKENS = 256  # the harness's default
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # first given wins


@register_model("bitnet")
class BitnetLM(LM):  # type: ignore[misc]  # the harness brings no types
    """A bitnet model behind the harness's interface.

    Args:
        pretrained: a folder, a GGUF file or a Hub id; None is the embedded story model.
        engine, threads: as in `load_model`.
        batch_size: most contexts that run at once; "auto" is 16.
        max_batch_size, device: the harness passes them whether they are given or not (its device is cuda:0
            then); the engine runs on the CPU and needs neither.
    Raises:
        InputError: an argument is out of range, or the model has no tokenizer.
    """

    def __init__(
        self,
        pretrained: str | None = None,
        engine: Engine = "cpu",
        threads: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        self.model = load_model(pretrained, engine, threads)
        if self.model.tokenizer is None:
            raise InputError(f"{pretrained}: has no tokenizer.json; the harness asks with texts")
        self._tokenizer = self.model.tokenizer
        self._batch_size = _batch_size(batch_size)
        self._special = False  # control tokens are read in prompts that the chat template wrote

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood, is greedy) of each request's (context, continuation)."""
        pairs = [request.args for request in requests]
        prefix = prefix_token(self.model)
        ids = [
            encode_pair(self._tokenizer, prefix, context, continuation, self._special)
            for context, continuation in pairs
        ]
        with _bar("loglikelihood", len(pairs), disable_tqdm) as bar:
            scores = score_ids(self.model, ids, batch_size=self._batch_size, progress=_updates(bar))
        found = [(one.log_likelihood, one.is_greedy) for one in scores]
        for pair, result in zip(pairs, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, result)
        _warn_of_cuts(scores)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each request's whole text."""
        texts = [request.args[0] for request in requests]
        with _bar("loglikelihood_rolling", None, disable_tqdm) as bar:
            scores = rolling_scores(self.model, texts, self._batch_size, _updates(bar))
        found = [-nats for nats, _ in scores]
        for text, result in zip(texts, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), result)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each request's context, up to one of its `until` strings, a stop token, or its
        length; greedy unless `do_sample` or a temperature asks for more."""
        found = []
        context = self.model.config.max_position_embeddings
        for request in tqdm(requests, desc="generate_until", disable=disable_tqdm):
            prompt, settings = request.args
            params = sampling_params(settings)
            if params.max_tokens >= context:
                raise InputError(
                    f"max_gen_toks is {params.max_tokens}; the model's context holds {context} tokens, "
                    "prompt and answer together"
                )
            ids = self._tokenizer.encode(prompt, special=self._special) or [prefix_token(self.model)]
            answer = generate(self.model, ids[params.max_tokens - context :], params).text
            self.cache_hook.add_partial("generate_until", request.args, answer)
            found.append(answer)
        return found

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation. From then on control tokens in prompts are read as such."""
        self._special = True
        return self._tokenizer.render_chat(chat_history, add_generation_prompt)

    @property
    def tokenizer_name(self) -> str:
        """Where the tokenizer lies; tells cached requests of different models apart."""
        return self._tokenizer.where

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the model's only template, None where none is asked for."""
        template = self._tokenizer.chat_template
        return template.source if chat_template and template is not None else None


def sampling_params(settings: Mapping[str, Any]) -> SamplingParams:
    """What a task's `generation_kwargs` mean here.

    Raises:
        InputError: a setting that is not known, or whose value is out of range.
    """
    rest = dict(settings)
    until = rest.pop("until", None) or []
    lengths = [value for name in _LENGTHS if (value := rest.pop(name, None)) is not None]
    sample = rest.pop("do_sample", None)
    temperature = rest.pop("temperature", 1.0 if sample else 0.0)
    chosen: dict[str, Any] = {"top_p": 1.0}
    chosen |= {name: rest.pop(name) for name in ("top_k", "top_p", "min_p", "seed") if name in rest}
    if rest:
        raise InputError(
            f"generation_kwargs: {', '.join(map(repr, rest))} is not known; known are until, do_sample, "
            f"temperature, top_k, top_p, min_p, seed, {', '.join(_LENGTHS)}"
        )
    return SamplingParams(
        temperature=0.0 if sample is False else temperature,
        stop=tuple([until] if isinstance(until, str) else [text for text in until if text]),
        max_tokens=int(lengths[0]) if lengths else _MAX_NEW_TOKENS,
        **chosen,
    )


def _batch_size(value: int | str | None) -> int:
    if value is None or (isinstance(value, str) and value.startswith("auto")):
        return _BATCH_SIZE
    try:
        return int(value)
    except ValueError:
        raise InputError(f"batch_size is {value!r}; give a whole number or auto") from None


def _bar(name: str, total: int | None, disable: bool) -> Any:
    return tqdm(desc=f"{name} requests", total=total, disable=disable)


def _updates(bar: Any) -> Any:
    def show(done: int, total: int) -> None:
        bar.total = total
        bar.update(done - bar.n)

    return show


def _warn_of_cuts(scores: Sequence[Score]) -> None:
    import logging

    cut = [one.truncated for one in scores if one.truncated]
    if cut:
        logging.getLogger(__name__).warning(
            "%d of %d contexts did not fit the model; %d tokens were cut from the left",
            len(cut),
            len(scores),
            sum(cut),
        )


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
