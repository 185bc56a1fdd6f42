"""Held-out perplexity of one GGUF file in this engine and in llama.cpp, on the same ids and windows.

    python benchmarks/llama_cpp_perplexity.py model-TQ2_0.gguf heldout.txt

The file must be of the architecture `bitnet` (SiLU), the one that llama.cpp runs. Needs the extra
`llama-cpp`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

import bitnet
from bitnet.evaluate.perplexity import measure_perplexity, read_documents


@dataclass
class Window:
    """A cache that keeps ids only: llama.cpp reads each window from its start."""

    capacity: int
    ids: list[int]

    @property
    def length(self) -> int:
        return len(self.ids)

    def truncate(self, length: int) -> None:
        del self.ids[length:]


class LlamaCpp:
    """llama.cpp behind the `Model` protocol, as far as scoring needs it."""

    def __init__(self, path: Path, ours: bitnet.Model) -> None:
        from llama_cpp import Llama

        self.config, self.tokenizer, self.stop_tokens = ours.config, ours.tokenizer, ours.stop_tokens
        context = self.config.max_position_embeddings
        self._llama: Any = Llama(str(path), n_ctx=context, n_batch=context, logits_all=True, verbose=False)

    def new_cache(self, max_tokens: int) -> Window:
        return Window(max_tokens, [])

    def forward(
        self, batch: Sequence[tuple[Window, Sequence[int]]], all_logits: bool = False
    ) -> list[NDArray[np.float32]]:
        results = []
        for cache, ids in batch:
            cache.ids.extend(ids)
            self._llama.reset()
            self._llama.eval(cache.ids)
            logits = self._llama.scores[: len(cache.ids)].copy()
            results.append(logits[-len(ids) :] if all_logits else logits[-1])
        return results


def main(
    gguf: Annotated[Path, typer.Argument(help="The file both engines run.")],
    text: Annotated[Path, typer.Argument(help="Documents between lines <|endoftext|>, or JSON lines.")],
    limit: Annotated[int | None, typer.Option(help="Only the first N documents.")] = None,
) -> None:
    """Print both perplexities, their ratio, and whether both tokenizers give the same ids."""
    ours = bitnet.load_model(gguf)
    theirs = LlamaCpp(gguf, ours)
    documents = read_documents(text, limit)
    other = 0
    for document in documents:
        found = theirs._llama.tokenize(document.encode(), add_bos=False, special=False)
        other += found != ours.tokenizer.encode(document, add_bos=False)
    print(f"{gguf.name}: {len(documents)} documents, {other} of them cut into other ids by llama.cpp")
    here, there = (measure_perplexity(model, documents) for model in (ours, theirs))
    print(f"{here.tokens} tokens: bitnet {here.token_perplexity:.4f}, llama.cpp {there.token_perplexity:.4f}")
    print(f"llama.cpp / bitnet {there.token_perplexity / here.token_perplexity:.5f}")


if __name__ == "__main__":
    typer.run(main)
