"""`bitnet eval`: a table for people, JSON for machines, one line for a fault of the input."""

import json

import pytest

from bitnet.evaluate.choices import METRICS, answer_questions, read_questions
from bitnet.evaluate.perplexity import measure_perplexity
from bitnet.load import load_model

ARC = [
    {"query": "Question: Where do fish live?", "choices": ["In water.", "In trees.", "On fire."], "gold": 0},
    {"query": "Question: What barks?", "choices": ["a cat", "a dog"], "gold": 1},
    {"query": "Question: What is red?", "choices": ["an apple", "the sky"], "gold": 0},
]
BLIMP = [
    {"sentence_good": "The dogs run.", "sentence_bad": "The dogs runs.", "UID": "agreement"},
    {"sentence_good": "She saw herself.", "sentence_bad": "She saw himself.", "UID": "anaphor"},
]


@pytest.fixture
def files(tmp_path):
    for name, rows in (("arc", ARC), ("blimp", BLIMP)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tale.txt").write_text("Once upon a time there was a dog.\n<|endoftext|>\nThe end.\n")
    return tmp_path


@pytest.fixture
def tasks(files):
    return f"arc_easy:{files}/arc.jsonl,blimp:{files}/blimp.jsonl,perplexity:{files}/tale.txt"


def test_json_is_what_the_functions_give(bitnet, files, tasks):
    result = bitnet("eval", "--tasks", tasks, "--json", "--batch", 2, "--threads", 1)
    assert result.code == 0
    found = json.loads(result.out)
    assert (found["model"], found["engine"], found["limit"]) == ("stories", "cpu", None)
    arc, blimp, tale = found["tasks"]
    model = load_model(threads=1)
    answers = answer_questions(model, read_questions("arc_easy", files / "arc.jsonl"))
    assert arc["questions"] == 3
    assert arc["truncated_tokens"] == 0
    assert arc["metrics"] == {
        name: {"value": one.value, "stderr": one.stderr} for name, one in answers.metrics.items()
    }
    assert list(arc["metrics"]) == list(METRICS["arc_easy"])
    assert list(blimp["metrics"]) == ["acc"]
    assert list(blimp["groups"]) == ["agreement", "anaphor"]
    measured = measure_perplexity(model, ["Once upon a time there was a dog.\n", "The end.\n"])
    assert tale["metrics"]["bits_per_byte"]["value"] == measured.bits_per_byte
    assert tale["metrics"]["token_perplexity"] == {"value": measured.token_perplexity, "stderr": None}
    assert (tale["documents"], tale["bytes"]) == (2, 43)


def test_table(bitnet, tasks):
    result = bitnet("eval", "--tasks", tasks, "--limit", 2, "--threads", 1)
    assert result.code == 0
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[0] == ["task", "items", "metric", "value", "±", "stderr"]
    assert lines[1][:4] == ["arc_easy", "2", "questions", "acc"]
    assert [line[0] for line in lines[2:4]] == ["acc_norm", "acc_bytes"]
    assert lines[5][:4] == ["perplexity", "2", "documents", "token_perplexity"]
    assert result.err == ""


def test_long_prompts_are_counted(bitnet, files):
    (files / "long.jsonl").write_text(json.dumps(ARC[0] | {"query": "long " * 600}))
    result = bitnet("eval", "--tasks", f"arc_easy:{files}/long.jsonl", "--threads", 1)
    assert "tokens of prompts did not fit the context and were cut" in result.out


def test_the_reference_engine(bitnet, files):
    """Bits per byte, for a single rounded key may turn a close choice."""
    pytest.importorskip("torch")
    tasks = f"perplexity:{files}/tale.txt"
    cpu, torch = [
        json.loads(bitnet("eval", "--tasks", tasks, "--json", "--engine", engine).out)
        for engine in ("cpu", "torch")
    ]
    assert torch["engine"] == "torch"
    ours, reference = (found["tasks"][0]["metrics"]["bits_per_byte"]["value"] for found in (cpu, torch))
    assert ours == pytest.approx(reference, rel=0.03)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ("arc", "--tasks: 'arc' is no task; known are perplexity, arc_easy, piqa, blimp"),
        ("", "--tasks: '' is no task"),
        ("piqa", "--tasks: piqa names no file; write piqa:FILE"),
        ("piqa:", "--tasks: piqa names no file"),
        ("piqa:/nowhere.jsonl", "/nowhere.jsonl: not found"),
        ("blimp:{files}/arc.jsonl", "arc.jsonl: line 1: sentence_good is missing, expected a string"),
        ("perplexity:{files}/arc.jsonl", "arc.jsonl: line 1: text is missing"),
    ],
)
def test_refusals_come_before_the_model_is_loaded(bitnet, files, tasks, message):
    result = bitnet("eval", files / "no-model", "--tasks", tasks.format(files=files))
    assert message in result.refusal


def test_a_model_without_a_tokenizer(bitnet, tasks, ids_model):
    assert "no tokenizer.json" in bitnet("eval", ids_model, "--tasks", tasks).refusal
