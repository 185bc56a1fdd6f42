"""Multiple choice by likelihood: ARC-Easy, PIQA and BLiMP from files, asked as lm-evaluation-harness does.

The answer is the choice with the highest score, the first among equals:

    acc        log p(" " + choice | prompt)
    acc_norm   the same divided by the choice's number of characters
    acc_bytes  the same divided by its number of UTF-8 bytes

An accuracy's standard error is that of a mean of n values 0 or 1: √(a (1 - a) / (n - 1)).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bitnet.errors import FormatError
from bitnet.evaluate.rows import Row, read_rows
from bitnet.evaluate.scoring import Progress, Score, score
from bitnet.generate.model import Model


@dataclass(frozen=True)
class Question:
    """A prompt (may be empty), its choices, the right one's index, and the group it is counted in."""

    prompt: str
    choices: tuple[str, ...]
    gold: int
    group: str | None = None


@dataclass(frozen=True)
class Answer:
    """A question's log-likelihoods, one a choice, and whether each metric got it right."""

    question: Question
    log_likelihoods: tuple[float, ...]
    correct: dict[str, bool]


@dataclass(frozen=True)
class Accuracy:
    """A share of right answers and its standard error, which one answer alone does not have."""

    value: float
    stderr: float | None

    @classmethod
    def of(cls, right: Sequence[bool]) -> Accuracy:
        share = sum(right) / len(right)
        spread = math.sqrt(share * (1 - share) / (len(right) - 1)) if len(right) > 1 else None
        return cls(share, spread)


@dataclass(frozen=True)
class ChoiceResult:
    """What a task's answers come to.

    Attributes:
        answers: one a question, in the file's order.
        truncated: ids of prompts that did not fit the model's context.
    """

    answers: tuple[Answer, ...]
    truncated: int

    @property
    def metrics(self) -> dict[str, Accuracy]:
        names = self.answers[0].correct
        return {name: Accuracy.of([answer.correct[name] for answer in self.answers]) for name in names}

    @property
    def groups(self) -> dict[str, Accuracy]:
        """acc by group; empty where questions name none."""
        found: dict[str, list[bool]] = {}
        for answer in self.answers:
            if answer.question.group is not None:
                found.setdefault(answer.question.group, []).append(answer.correct["acc"])
        return {name: Accuracy.of(right) for name, right in found.items()}


def read_arc_easy(row: Row) -> Question:
    """`query`, `choices`, `gold`, or as the data set has it: `question`, `choices`, `answerKey`."""
    if "answerKey" not in row.values:
        return _query(row)
    nested = row.values.get("choices")
    if not isinstance(nested, dict):
        raise FormatError(f"{row.where}: choices is no object with text and label, as answerKey asks for")
    options = Row(f"{row.where}: choices", nested)
    texts, labels = options.texts("text"), options.texts("label")
    key = row.text("answerKey")
    if key not in labels or len(labels) != len(texts):
        raise FormatError(f"{row.where}: answerKey {key!r} does not name one of {len(texts)} choices")
    return Question(f"Question: {row.text('question')}\nAnswer:", tuple(texts), labels.index(key))


def read_piqa(row: Row) -> Question:
    """`query`, `choices`, `gold`, or as the data set has it: `goal`, `sol1`, `sol2`, `label`."""
    if "goal" not in row.values:
        return _query(row)
    choices = (row.text("sol1"), row.text("sol2"))
    return Question(f"Question: {row.text('goal')}\nAnswer:", choices, row.index("label", 2))


def read_blimp(row: Row) -> Question:
    """`sentence_good` against `sentence_bad`, grouped by `UID` where there is one."""
    choices = (row.text("sentence_good"), row.text("sentence_bad"))
    return Question("", choices, 0, row.text("UID") if "UID" in row.values else None)


def _query(row: Row) -> Question:
    choices = row.texts("choices")
    prompt = row.text("query").removesuffix("\n") + "\nAnswer:"
    return Question(prompt, tuple(choices), row.index("gold", len(choices)))


READERS: Mapping[str, Callable[[Row], Question]] = {
    "arc_easy": read_arc_easy,
    "piqa": read_piqa,
    "blimp": read_blimp,
}
METRICS: Mapping[str, tuple[str, ...]] = {
    "arc_easy": ("acc", "acc_norm", "acc_bytes"),
    "piqa": ("acc", "acc_norm", "acc_bytes"),
    "blimp": ("acc",),  # both sentences are meant to be equally long
}


def read_questions(task: str, path: Path, limit: int | None = None) -> list[Question]:
    """The questions of a file, the first `limit` of each member where it is a .zip.

    Raises:
        FormatError: the file is damaged, or a row lacks something; the message names the line.
    """
    return [READERS[task](row) for rows in read_rows(path) for row in rows[:limit]]


def answer_questions(
    model: Model,
    questions: Sequence[Question],
    metrics: Sequence[str] = ("acc", "acc_norm", "acc_bytes"),
    batch_size: int = 16,
    progress: Progress | None = None,
) -> ChoiceResult:
    """Let a model choose; `progress` is called with the number of choices scored and that of all.

    Raises:
        InputError: as `score`.
    """
    pairs = [(question.prompt, f" {choice}") for question in questions for choice in question.choices]
    scores = score(model, pairs, batch_size=batch_size, progress=progress)
    answers, start = [], 0
    for question in questions:
        found = scores[start : start + len(question.choices)]
        answers.append(_answer(question, found, metrics))
        start += len(found)
    return ChoiceResult(tuple(answers), sum(one.truncated for one in scores))


def _answer(question: Question, scores: Sequence[Score], metrics: Sequence[str]) -> Answer:
    likelihoods = np.array([one.log_likelihood for one in scores])
    lengths = {
        "acc": np.ones(len(scores)),
        "acc_norm": np.array([len(choice) for choice in question.choices]),
        "acc_bytes": np.array([len(choice.encode()) for choice in question.choices]),
    }
    correct = {name: int(np.argmax(likelihoods / lengths[name])) == question.gold for name in metrics}
    return Answer(question, tuple(likelihoods.tolist()), correct)
