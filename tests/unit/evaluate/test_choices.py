"""Prompts letter by letter, metrics by hand, and a model that is right or wrong by construction."""

import json
import math
import zipfile

import pytest

from bitnet.errors import FormatError
from bitnet.evaluate import choices
from bitnet.evaluate.choices import Accuracy, Question, answer_questions, read_questions
from bitnet.evaluate.scoring import Score, score

ARC = {"query": "Question: Why?", "choices": ["Sun", "Moon", "Sea"], "gold": 2}
PIQA = {"query": "Question: How?\n", "choices": ["so", "not so"], "gold": 0}
BLIMP = {"sentence_good": "He is.", "sentence_bad": "He are.", "UID": "verbs"}


def questions(tmp_path, task, *rows):
    path = tmp_path / "f.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_questions(task, path)


def test_prompts_are_those_of_the_harness(tmp_path):
    assert questions(tmp_path, "arc_easy", ARC) == [
        Question("Question: Why?\nAnswer:", ("Sun", "Moon", "Sea"), 2)
    ]
    assert questions(tmp_path, "piqa", PIQA) == [Question("Question: How?\nAnswer:", ("so", "not so"), 0)]
    assert questions(tmp_path, "blimp", BLIMP) == [Question("", ("He is.", "He are."), 0, "verbs")]


def test_rows_of_the_data_sets_give_the_same(tmp_path):
    options = {"text": ["Sun", "Moon", "Sea"], "label": ["A", "B", "C"]}
    row = {"id": "x", "question": "Why?", "choices": options, "answerKey": "C"}
    assert questions(tmp_path, "arc_easy", row) == questions(tmp_path, "arc_easy", ARC)
    row = {"goal": "How?", "sol1": "so", "sol2": "not so", "label": 0}
    assert questions(tmp_path, "piqa", row) == questions(tmp_path, "piqa", PIQA)


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("arc_easy", ARC | {"gold": 3}, r"line 2: gold is 3, expected a number in 0\.\.2"),
        ("arc_easy", ARC | {"query": None}, "line 2: query is missing"),
        ("arc_easy", {"question": "?", "choices": [], "answerKey": "A"}, "choices is no object"),
        (
            "arc_easy",
            {"question": "?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "C"},
            "answerKey 'C' does not name one of 2 choices",
        ),
        (
            "arc_easy",
            {"question": "?", "choices": {"text": ["a", "b"], "label": ["A", "B", "C"]}, "answerKey": "C"},
            "answerKey 'C' does not name one of 2 choices",
        ),
        ("piqa", PIQA | {"choices": "so"}, "line 2: choices is 'so'"),
        ("piqa", {"goal": "?", "sol1": "a", "sol2": "b", "label": -1}, "label is -1"),
        ("blimp", {"sentence_good": "He is."}, "line 2: sentence_bad is missing"),
        ("blimp", BLIMP | {"UID": 3}, "UID is 3"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path, task, row, message):
    good = {"arc_easy": ARC, "piqa": PIQA, "blimp": BLIMP}[task]
    with pytest.raises(FormatError, match=rf"f\.jsonl: .*{message}"):
        questions(tmp_path, task, good, row)


def test_limit_counts_in_each_member(tmp_path):
    path = tmp_path / "f.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a", "b"):
            row = json.dumps(BLIMP | {"UID": name})
            archive.writestr(f"{name}.jsonl", f"{row}\n{row}\n{row}")
    assert [question.group for question in read_questions("blimp", path, 2)] == ["a", "a", "b", "b"]


def test_metrics_by_hand(monkeypatch):
    """Equal scores go to the first choice; characters and bytes part at an umlaut."""
    values = iter([-4.0, -4.0, -6.0, -7.0, -3.0, -4.1])

    def scripted(model, pairs, **_):
        assert pairs[:2] == [("p", " aa"), ("p", " bbbb")]
        return [Score(next(values), False, 1, 1, 5) for _ in pairs]

    monkeypatch.setattr(choices, "score", scripted)
    found = answer_questions(
        None,
        [
            Question("p", ("aa", "bbbb"), 0, "x"),  # -4 = -4; -2 < -1
            Question("p", ("üü", "bbb"), 1, "y"),  # -6 > -7; -3 < -7/3; -6/4 > -7/3
            Question("p", ("c", "dd"), 0, "y"),  # -3 > -4.1; -3 < -2.05
        ],
    )
    assert [answer.correct for answer in found.answers] == [
        {"acc": True, "acc_norm": False, "acc_bytes": False},
        {"acc": False, "acc_norm": True, "acc_bytes": False},
        {"acc": True, "acc_norm": False, "acc_bytes": False},
    ]
    assert found.metrics["acc"].value == pytest.approx(2 / 3)
    # lm-evaluation-harness: the sample's standard deviation over √n
    deviation = math.sqrt((2 * (1 / 3) ** 2 + (2 / 3) ** 2) / 2)
    assert found.metrics["acc"].stderr == pytest.approx(deviation / math.sqrt(3))
    assert {name: one.value for name, one in found.groups.items()} == {"x": 1.0, "y": 0.5}
    assert found.truncated == 30


def test_one_answer_has_no_spread():
    assert Accuracy.of([True]) == Accuracy(1.0, None)


def test_a_story_model_prefers_stories(stories):
    items = [
        Question("Once upon a", ("time", "piston"), 0),
        Question("", ("She was very happy.", "Happy she very was."), 0),
        Question("", ("Was he dog a big.", "He was a big dog."), 1),
    ]
    seen = []
    found = answer_questions(stories, items, ["acc"], progress=lambda done, total: seen.append((done, total)))
    assert found.metrics["acc"].value == 1.0
    assert seen[-1] == (6, 6)
    pairs = [(item.prompt, f" {choice}") for item in items for choice in item.choices]
    assert [value for answer in found.answers for value in answer.log_likelihoods] == [
        one.log_likelihood for one in score(stories, pairs)
    ]
