"""Tasks by name, TASK:FILE,TASK:FILE…: reads each one's file, runs it, and gives its numbers in one form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bitnet.errors import InputError
from bitnet.evaluate.choices import METRICS, ChoiceResult, Question, answer_questions, read_questions
from bitnet.evaluate.perplexity import PerplexityResult, measure_perplexity, read_documents
from bitnet.evaluate.scoring import Progress
from bitnet.generate.model import Model

PERPLEXITY = "perplexity"
NAMES = (PERPLEXITY, *METRICS)


@dataclass(frozen=True)
class Metric:
    """One number of a task; `stderr` is None where there is none."""

    name: str
    value: float
    stderr: float | None = None


@dataclass(frozen=True)
class TaskResult:
    """A task's numbers.

    Attributes:
        task: its name.
        file: what it was measured on.
        counts: how much that was, by unit.
        metrics: the numbers.
        groups: acc by group (BLiMP's paradigms); empty for most tasks.
    """

    task: str
    file: str
    counts: dict[str, int]
    metrics: tuple[Metric, ...]
    groups: tuple[Metric, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What `bitnet eval --json` prints of it."""
        values: dict[str, Any] = {"task": self.task, "file": self.file, **self.counts}
        values["metrics"] = _by_name(self.metrics)
        if self.groups:
            values["groups"] = _by_name(self.groups)
        return values


@dataclass(frozen=True)
class Task:
    """A task whose file has been read: questions for a choice, texts for perplexity."""

    name: str
    path: Path
    items: Sequence[Question] | Sequence[str]

    @classmethod
    def read(cls, name: str, path: Path, limit: int | None = None) -> Task:
        """Read the first `limit` items.

        Raises:
            FormatError: the file is damaged; the message names the line.
        """
        items = read_documents(path, limit) if name == PERPLEXITY else read_questions(name, path, limit)
        return cls(name, path, items)

    def run(self, model: Model, batch_size: int = 16, progress: Progress | None = None) -> TaskResult:
        """Measure a model.

        Raises:
            InputError: the model has no tokenizer, or an answer does not fit its context.
        """
        texts = [item for item in self.items if isinstance(item, str)]
        if texts:
            return self._perplexity(measure_perplexity(model, texts, batch_size, progress))
        questions = [item for item in self.items if isinstance(item, Question)]
        return self._accuracy(answer_questions(model, questions, METRICS[self.name], batch_size, progress))

    def _perplexity(self, found: PerplexityResult) -> TaskResult:
        return TaskResult(
            self.name,
            str(self.path),
            {
                "documents": len(found.documents),
                "tokens": found.tokens,
                "words": found.words,
                "bytes": found.bytes,
            },
            (
                Metric("token_perplexity", found.token_perplexity),
                Metric("word_perplexity", found.word_perplexity),
                Metric("byte_perplexity", found.byte_perplexity),
                Metric("bits_per_byte", found.bits_per_byte, found.bits_per_byte_stderr),
            ),
        )

    def _accuracy(self, found: ChoiceResult) -> TaskResult:
        return TaskResult(
            self.name,
            str(self.path),
            {"questions": len(found.answers), "truncated_tokens": found.truncated},
            tuple(Metric(name, one.value, one.stderr) for name, one in found.metrics.items()),
            tuple(Metric(name, one.value, one.stderr) for name, one in sorted(found.groups.items())),
        )


def parse_tasks(text: str, limit: int | None = None) -> list[Task]:
    """Read the files of "arc_easy:FILE,piqa:FILE".

    Raises:
        InputError: an unknown task, or one without a file.
        FormatError: as `Task.read`.
    """
    named = []
    for part in text.split(","):
        name, colon, file = part.strip().partition(":")
        if name not in NAMES:
            raise InputError(f"--tasks: {name!r} is no task; known are {', '.join(NAMES)}")
        if not colon or not file:
            raise InputError(f"--tasks: {name} names no file; write {name}:FILE")
        named.append((name, Path(file).expanduser()))
    return [Task.read(name, path, limit) for name, path in named]


def _by_name(metrics: Sequence[Metric]) -> dict[str, dict[str, float | None]]:
    return {metric.name: {"value": metric.value, "stderr": metric.stderr} for metric in metrics}
