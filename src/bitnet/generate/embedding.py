"""Embeddings of texts: the mean over a text's tokens of the last layer's normalised hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import InputError
from bitnet.generate.model import Model

_MAX_TOKENS = 1 << 13  # of one forward pass; at 2B4T's width their hidden states take 84 MB


def embed(
    model: Model, texts: Sequence[str | Sequence[int]], *, normalize: bool = False
) -> NDArray[np.float32]:
    """One vector a text. What a text gets does not depend on its company.

    A language model is not trained for this: compare its vectors with each other (`normalize`, then a dot
    product is the cosine), and with no other model's.

    Args:
        texts: texts (control tokens in them are plain text; BOS is added and counts) or lists of ids.
        normalize: scale each vector to length 1.
    Returns:
        float32, (len(texts), hidden_size).
    Raises:
        InputError: a text is empty or longer than the model's context, holds ids outside the vocabulary, or
            the model has no tokenizer.
    """
    if isinstance(texts, str):
        raise InputError("texts is one string; give a list of them")
    ids = [_encode(model, number, text) for number, text in enumerate(texts)]
    vectors = np.empty((len(ids), model.config.hidden_size), np.float32)
    done = 0
    while done < len(ids):
        end, tokens = done, 0
        while end < len(ids) and (end == done or tokens + len(ids[end]) <= _MAX_TOKENS):
            tokens += len(ids[end])
            end += 1
        batch = [(model.new_cache(len(one)), one) for one in ids[done:end]]
        for place, states in enumerate(model.hidden_states(batch), done):
            vectors[place] = states.mean(axis=0, dtype=np.float64)
        done = end
    if normalize:
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors /= np.where(lengths > 0, lengths, 1)  # only a model of zeros gives a vector of zeros
    return vectors


def _encode(model: Model, number: int, text: str | Sequence[int]) -> Sequence[int]:
    if isinstance(text, str):
        if model.tokenizer is None:
            raise InputError("the model has no tokenizer.json; give texts as ids")
        if not text:
            raise InputError(f"text {number} is empty")
        text = model.tokenizer.encode(text)
    if len(text) == 0:
        raise InputError(f"text {number} is empty")
    if len(text) > model.config.max_position_embeddings:
        raise InputError(
            f"text {number} has {len(text)} tokens; the model's context holds "
            f"{model.config.max_position_embeddings}"
        )
    return text
