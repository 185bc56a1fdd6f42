"""The model type in the real lm-evaluation-harness: its own tasks on local files, against our numbers."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="needs the extra lm-eval")

import lm_eval
import lm_eval.tasks
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from bitnet.errors import InputError
from bitnet.evaluate.choices import answer_questions, read_questions
from bitnet.evaluate.lm_eval import BitnetLM, sampling_params
from bitnet.evaluate.perplexity import measure_perplexity, rolling_windows
from bitnet.evaluate.scoring import encode_pair, prefix_token
from bitnet.generate import SamplingParams, generate

WORDS = [
    "the",
    "a",
    "dog",
    "cat",
    "Lily",
    "ran",
    "happy",
    "Größe",
    "🐻",
    "blue sky",
    "water",
    "trees",
    "",
    ".",
]
HARNESS = {
    "arc_easy": "arc/arc_easy.yaml",
    "piqa": "piqa/piqa.yaml",
    "blimp_adjunct_island": "blimp/adjunct_island.yaml",
}
PROGRAM = """
import functools, runpy, lm_eval.tasks as tasks
tasks.TaskManager = functools.partial(tasks.TaskManager, include_defaults=False)
runpy.run_module("bitnet.evaluate.lm_eval", run_name="__main__", alter_sys=True)
"""
TALES = ["Once upon a time there was a dog.\n", "The end.", "Lily saw a big red ball. " * 90]


@pytest.fixture(scope="module")
def lm():
    return BitnetLM(threads=1, batch_size=3)


@pytest.fixture
def write(tmp_path):
    def rows(name, values):
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(value) for value in values))
        return path

    return rows


def phrase(draw, least=1):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, 12)))


def local_task(path, tmp_path, **settings):
    """A task in YAML whose rows are a local file."""
    files = {split: str(path) for split in ("train", "validation", "test")}
    kwargs = {"data_files": files, "cache_dir": str(tmp_path / "cache")}
    source = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": kwargs}
    task = tmp_path / "task.yaml"
    task.write_text(json.dumps(settings | source))  # JSON is YAML
    return str(task)


def harness_task(name, path, tmp_path):
    """The harness's own task of that name, on a local file."""
    own = Path(lm_eval.tasks.__file__).parent / HARNESS[name]
    return local_task(path, tmp_path, include=str(own), task=name)


def evaluate(lm, *tasks):
    manager = TaskManager(include_defaults=False)  # reading its 13,000 tasks takes longer than all the tests
    found = lm_eval.simple_evaluate(model=lm, tasks=list(tasks), bootstrap_iters=2, task_manager=manager)
    samples = {name: sorted(rows, key=lambda row: row["doc_id"]) for name, rows in found["samples"].items()}
    return found["results"], samples


@pytest.mark.parametrize("task", HARNESS)
def test_the_harness_and_bitnet_eval_agree_to_the_last_item(lm, write, tmp_path, task):
    draw = random.Random(task)
    rows = {
        "arc_easy": lambda: {
            "question": phrase(draw),
            "choices": {"text": [phrase(draw) for _ in range(4)], "label": ["A", "B", "C", "D"]},
            "answerKey": draw.choice("ABCD"),
        },
        "piqa": lambda: {
            "goal": phrase(draw),
            "sol1": phrase(draw),
            "sol2": phrase(draw),
            "label": draw.randint(0, 1),
        },
        "blimp_adjunct_island": lambda: {"sentence_good": phrase(draw), "sentence_bad": phrase(draw)},
    }[task]
    path = write("rows.jsonl", [rows() for _ in range(12)])
    results, samples = evaluate(lm, harness_task(task, path, tmp_path))
    ours = answer_questions(lm.model, read_questions(task.split("_adjunct")[0], path))
    assert len(samples[task]) == len(ours.answers) == 12
    for row, answer in zip(samples[task], ours.answers, strict=True):
        assert tuple(float(reply[0][0]) for reply in row["resps"]) == answer.log_likelihoods
        for metric in {"acc", "acc_norm"} & row.keys():
            assert row[metric] == answer.correct[metric]
    for metric in {"acc", "acc_norm"} & samples[task][0].keys():
        assert results[task][f"{metric},none"] == pytest.approx(ours.metrics[metric].value)
        assert results[task][f"{metric}_stderr,none"] == pytest.approx(ours.metrics[metric].stderr)


def test_perplexity(lm, write, tmp_path):
    path = write("tales.jsonl", [{"text": text} for text in TALES])
    metrics = [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")]
    task = {
        "task": "tales",
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": metrics,
    }
    results, _ = evaluate(lm, local_task(path, tmp_path, **task))
    ours = measure_perplexity(lm.model, TALES)
    for metric in metrics:
        name = metric["metric"]
        assert results["tales"][f"{name},none"] == pytest.approx(getattr(ours, name), rel=1e-9)


def test_the_program_takes_the_model_and_a_local_task(write, tmp_path):
    """As a user starts it: a task in YAML beside its rows."""
    path = write("rows.jsonl", [{"prompt": "Once upon a", "answer": "time", "other": "piston"}] * 3)
    task = local_task(
        path,
        tmp_path,
        task="tale",
        output_type="multiple_choice",
        test_split="test",
        doc_to_text="{{prompt}}",
        doc_to_target=0,
        doc_to_choice="{{[answer, other]}}",
        metric_list=[{"metric": "acc"}],
    )
    out = tmp_path / "out"
    arguments = ["--model", "bitnet", "--model_args", "threads=1", "--tasks", task]
    program = [sys.executable, "-c", PROGRAM, "run", *arguments, "--output_path", str(out)]
    ended = subprocess.run(program, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    (found,) = out.rglob("results*.json")
    assert json.loads(found.read_text())["results"]["tale"]["acc,none"] == 1.0


def test_pairs_are_encoded_as_the_harness_does(lm):
    class Theirs(TemplateLM):
        eot_token_id = 0
        loglikelihood_rolling = generate_until = None
        _loglikelihood_tokens = None

        def __init__(self):
            pass

        def tok_encode(self, string, add_special_tokens=None, **_):
            return lm.model.tokenizer.encode(string, add_bos=add_special_tokens is not False)

    draw = random.Random(3)
    prefix = prefix_token(lm.model)
    for _ in range(200):
        context, continuation = phrase(draw) + draw.choice(["", " ", "\n\n", "\t "]), " " + phrase(draw)
        if context.strip():
            assert encode_pair(lm.model.tokenizer, prefix, context, continuation) == Theirs()._encode_pair(
                context, continuation
            )


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 13])
@pytest.mark.parametrize("length", [1, 2, 4, 20])
def test_windows_are_those_of_the_harness(count, length):
    theirs = get_rolling_token_windows(list(range(count)), -1, length, 1)
    assert list(rolling_windows(range(count), -1, length)) == list(map(make_disjoint_window, theirs))


def requests(*arguments):
    return [Instance("generate_until", {}, arguments=one, idx=0) for one in arguments]


def test_generation_ends_at_a_text(lm):
    settings = {"until": ["."], "max_gen_toks": 40}
    found = lm.generate_until(requests(("Once upon a time", settings), ("", settings)), disable_tqdm=True)
    greedy = generate(lm.model, "Once upon a time", SamplingParams(temperature=0, max_tokens=40, stop=(".",)))
    assert found[0] == greedy.text
    assert found[0]
    assert "." not in "".join(found)


def test_a_long_prompt_is_cut_from_the_left(lm):
    settings = {"max_gen_toks": 8}
    long, cut = ("word " * 600).strip(), lm.model.tokenizer.encode(("word " * 600).strip())[8 - 512 :]
    (found,) = lm.generate_until(requests((long, settings)), disable_tqdm=True)
    assert found == generate(lm.model, cut, SamplingParams(temperature=0, max_tokens=8)).text
    with pytest.raises(InputError, match="max_gen_toks is 512; the model's context holds 512"):
        lm.generate_until(requests(("a", {"max_gen_toks": 512})), disable_tqdm=True)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"until": "x"},
        {"until": ["x", "yy"], "do_sample": False, "temperature": 0.7},
        {"do_sample": True, "temperature": 0.7, "top_p": 0.8},
        {"temperature": 0.3, "max_tokens": 7, "max_new_tokens": 5},
        {"do_sample": True},
    ],
)
def test_generation_settings_mean_what_they_mean_to_the_harness(settings):
    theirs = normalize_gen_kwargs(settings)
    ours = sampling_params(settings)
    assert list(ours.stop) == theirs["until"]
    assert ours.max_tokens == theirs["max_gen_toks"]
    assert (ours.temperature > 0) == theirs["do_sample"]
    if settings.get("temperature"):
        assert ours.temperature == theirs["temperature"]
    assert ours.top_p == theirs.get("top_p", 1.0)


def test_settings_that_are_not_known():
    with pytest.raises(InputError, match="'num_beams' is not known"):
        sampling_params({"num_beams": 4})


def test_chat_templates(lm, tmp_path):
    """What the template writes is read as control tokens, so a prompt of it gives the ids of `chat`."""
    import shutil

    from bitnet.load import embedded_model

    folder = shutil.copytree(embedded_model(), tmp_path / "chat")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|endoftext|>{% endfor %}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    talker = BitnetLM(str(folder), threads=1)
    history = [{"role": "user", "content": "Hi"}]
    prompt = talker.apply_chat_template(history)
    prefix = prefix_token(talker.model)
    context, _ = encode_pair(talker.model.tokenizer, prefix, prompt, " you", special=talker._special)
    assert context == talker.model.tokenizer.chat(history)
    assert talker.chat_template(True) == template
    assert talker.tokenizer_name == str(folder)
    assert lm.chat_template(True) is None
    assert talker.chat_template(False) is None


def test_batch_sizes():
    assert BitnetLM(threads=1, batch_size="auto:4", max_batch_size=None, device="cuda:0")._batch_size == 16
    with pytest.raises(InputError, match="batch_size is 'many'"):
        BitnetLM(threads=1, batch_size="many")


def test_a_model_without_a_tokenizer(golden):
    with pytest.raises(InputError, match=r"has no tokenizer\.json"):
        BitnetLM(str(golden / "packed_offline"))
