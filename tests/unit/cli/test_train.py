"""`bitnet train` from text to an exported folder, and its refusals."""

import json

import pytest
import yaml

from bitnet.cli.main import run
from bitnet.config import ModelConfig
from bitnet.formats.checkpoint import read_checkpoint
from bitnet.formats.synthesize import synthesize
from bitnet.load import load_model
from bitnet.train.tokenizer import learn_tokenizer, save_tokenizer

SMALL = (
    "model={preset: stories, vocab_size: 270, hidden_size: 32, intermediate_size: 64, num_hidden_layers: 1}",
    "data.batch_size=2",
    "data.sequence_length=16",
)


TINY = {
    "vocab_size": 270,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
HUGE = "model={preset: stories, vocab_size: 270, hidden_size: 4000000000, head_dim: 32}"


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "story.txt"
    stories = [f"The cat sat on the mat {number} times. So it goes." for number in range(90)]
    path.write_text("\n<|endoftext|>\n".join(stories), encoding="utf-8")
    return path


def bitnet(*arguments) -> int:
    with pytest.raises(SystemExit) as exit_:
        run([str(argument) for argument in arguments])
    return exit_.value.code or 0


def settings(*more: str) -> list[str]:
    return [part for assignment in (*SMALL, *more) for part in ("--set", assignment)]


def test_trains_resumes_and_exports(text, tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ("--data", f"{text}:2", "--heldout", text, "--steps", 2, "--threads", 1)
    assert bitnet("train", "--out", out, *arguments, *settings()) == 0
    assert bitnet("train", "--out", out, "--resume", "--steps", 3, "--threads", 1) == 0
    assert "finished 3 steps" in capsys.readouterr().out
    for form, mode in (("packed", "offline"), ("bf16", "online")):
        assert bitnet("train", "--out", out, "--export", tmp_path / form, "--export-format", form) == 0
        model = load_model(tmp_path / form, engine="torch")
        assert model.config.quantization.quantization_mode == mode
        assert model.config.vocab_size == 270
        assert (out / f"model-{form}" / "model.safetensors").read_bytes() == (
            tmp_path / form / "model.safetensors"
        ).read_bytes()
    assert (out / "loss.png").exists()


def test_a_file_a_prepared_folder_and_masters_start_runs(text, tmp_path, capsys):
    assert bitnet("tokenizer", "train", text, "--vocab-size", 270, "--out", tmp_path / "tok") == 0
    prepared = tmp_path / "data"
    assert (
        bitnet("prepare", text, "--tokenizer", tmp_path / "tok", "--validation", 0.3, "--out", prepared) == 0
    )
    file = tmp_path / "run.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "model": {
                    "preset": "stories",
                    "hidden_size": 32,
                    "intermediate_size": 64,
                    "num_hidden_layers": 1,
                },
                "data": {
                    "sources": [{"path": str(prepared), "passes": 2}],
                    "heldout": [str(prepared)],
                    "sequence_length": 8,
                    "batch_size": 2,
                },
                "schedule": {"horizon": 64, "unit": "tokens"},
            }
        )
    )
    assert bitnet("train", file, "--out", tmp_path / "first", "--threads", 1) == 0
    masters = tmp_path / "first" / "model-bf16"
    assert load_model(masters, engine="torch").config.vocab_size == 270
    arguments = ("--data", prepared, "--steps", 2, "--set", f"initial={masters}", "--threads", 1)
    sizes = ("--set", "data.sequence_length=8", "--set", "data.batch_size=2")
    assert bitnet("train", "--out", tmp_path / "second", *arguments, *sizes) == 0
    assert load_model(tmp_path / "second" / "model-packed").config.hidden_size == 32


def test_draws_a_schedule_without_training(text, tmp_path, capsys):
    picture = tmp_path / "schedule.png"
    arguments = ("--preset", "stories", "--data", text, "--steps", 5000)
    assert bitnet("train", *arguments, "--plot-schedule", picture) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "5000 steps" in capsys.readouterr().out


def test_a_schedule_with_masters_needs_no_model(text, tmp_path, capsys):
    synthesize(ModelConfig(**TINY), tmp_path / "masters", mode="online")
    arguments = ("--data", text, "--steps", 7, "--plot-schedule", tmp_path / "a.png")
    changes = ("--set", f"initial={tmp_path / 'masters'}", "--set", "data.sequence_length=8")
    assert bitnet("train", *arguments, *changes) == 0
    assert "7 steps" in capsys.readouterr().out


def test_a_file_of_any_name_conversations_and_numbers_as_people_write_them(tmp_path, capsys):
    """A character beyond 16 bits, a chat template beside the tokenizer, 1e-4 without a dot."""
    said = [f"The cat sat on the mat {number} times." for number in range(40)]
    chats = tmp_path / "gespräche 😀.jsonl"
    rows = [{"messages": [{"role": "user", "content": text}]} for text in said]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tokenizer = tmp_path / "tokenizer"
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    save_tokenizer(learn_tokenizer(said, 260), tokenizer, chat_template=template)
    model = json.dumps(TINY | {"preset": "2b4t"})[1:-1]
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: {{{model}, rms_norm_eps: 1e-4}}\n"
        "data: {batch_size: 2, sequence_length: 16}\n"
        "schedule: {horizon: 2e0, learning_rate: {peak: 1e-3, warmup: 0}}\n"
    )
    arguments = ("--data", chats, "--tokenizer", tokenizer, "--threads", 1)
    assert bitnet("train", file, "--out", tmp_path / "run", *arguments) == 0, capsys.readouterr().err
    config = load_model(tmp_path / "run" / "model-packed").config
    assert (config.rms_norm_eps, config.bos_token_id, config.eos_token_id) == (1e-4, 0, (0,))


def test_the_schedule_of_low_bit_inputs_shows_where_they_begin(text, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("bitnet.train.plots.plot_schedule", lambda curves, *_: drawn.append(curves))
    arguments = ("--preset", "stories", "--data", text, "--steps", 20, "--plot-schedule", tmp_path / "a.png")
    assert bitnet("train", *arguments, "--set", "schedule.low_bit_from=0.75") == 0
    for name in ("a4.8", "v2"):
        settings = ("--set", f"model.variant={name}", "--set", "schedule.low_bit_from=0.75")
        assert bitnet("train", *arguments, *settings) == 0
    plain, *low_bit = drawn
    assert "low-bit inputs" not in plain
    for curves in low_bit:
        assert curves["low-bit inputs"] == (list(range(20)), [0.0] * 15 + [1.0] * 5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to do"),
        (("--data", "{text}", "--preset", "stories"), "schedule"),
        (("--data", "{text}", "--steps", "1", "--preset", "none"), "unknown preset"),
        (("--data", "missing.txt", "--steps", "1", "--preset", "stories"), "missing.txt"),
        (("--data", "{text}", "--steps", "1", "--preset", "stories", "--set", "shedule.switch=1"), "shedule"),
        (("--resume",), "no training run"),
        (("nowhere.yaml",), "nowhere.yaml"),
        (("--data", "{text}", "--steps", "1", "--set", "initial={text}"), "story.txt"),
        (("--export", "{text}.model"), "no training run"),
        (("--data", "{text}", "--steps", "1", "--set", "model=5"), "preset: stories"),
        (("{text}", "--resume"), "leave the others out"),
        (("--resume", "--tokenizer", "{text}"), "leave the others out"),
        (("--data", "{text}", "--steps", "1", "--set", HUGE), "not enough memory"),
        (("--data", "hf:org/name", "--steps", "1", "--preset", "stories"), "`bitnet prepare` it first"),
        (("--data", "{text}", "--steps", "1", "--preset", "stories"), "a smaller model.vocab_size"),
        (("--data", "{text}", "--steps", "1", "--set", "model.preset=[a]"), "model.preset is ['a']"),
        (("--data", "{text}", "--steps", "1", "--set", "model={preset: stories, 1: 2, a: 3}"), "the key 1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(text, tmp_path, capsys, arguments, message):
    filled = [argument.replace("{text}", str(text)) for argument in arguments]
    assert bitnet("train", "--out", tmp_path / "run", *filled) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert message in error


def test_no_threads_are_a_usage_error(tmp_path, capsys):
    assert bitnet("train", "--out", tmp_path, "--resume", "--threads", 0) == 2
    assert "--threads" in capsys.readouterr().err


def test_a_plain_run_is_not_exported(text, tmp_path, capsys):
    out = tmp_path / "run"
    plain = settings("schedule.quantized=false")
    assert bitnet("train", "--out", out, "--data", text, "--steps", 1, "--threads", 1, *plain) == 0
    assert "nothing is exported" in capsys.readouterr().err
    assert bitnet("train", "--out", out, "--export", tmp_path / "packed") == 2
    assert "schedule.quantized is false" in capsys.readouterr().err


def test_a_foreign_tokenizer_keeps_its_ends_and_its_chat_template(text, tmp_path, capsys):
    """Two separators, as Llama 3 has them, and a template of its own; both survive a continuation."""
    tokenizer = learn_tokenizer([text.read_text()], 270)
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|turn|>"])
    values = json.loads(tokenizer.to_str().replace("<|endoftext|>", "<|unused|>"))
    given = tmp_path / "foreign"
    given.mkdir()
    (given / "tokenizer.json").write_text(json.dumps(values))
    template = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    (given / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    data = ("--data", text, "--steps", 1, "--threads", 1)
    small = settings()
    small[1] = small[1].replace("vocab_size: 270, ", "")
    first = tmp_path / "first"
    arguments = (*data, "--tokenizer", given / "tokenizer.json", *small)
    assert bitnet("train", "--out", first, *arguments) == 0, capsys.readouterr().err
    masters = first / "model-bf16"
    config = read_checkpoint(masters).config
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id) == (273, 270, (271,))
    generation = json.loads((masters / "generation_config.json").read_text())
    (masters / "generation_config.json").write_text(json.dumps(generation | {"eos_token_id": [271, 272]}))
    second = tmp_path / "second"
    continued = ("--set", f"initial={masters}", *settings()[2:])
    assert bitnet("train", "--out", second, *data, *continued) == 0, capsys.readouterr().err
    model = load_model(second / "model-packed")
    assert model.stop_tokens == {271, 272}
    assert model.tokenizer.chat_template.render([{"role": "user", "content": "hi"}], False, {}) == "[hi]"


def test_a_missing_package_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bitnet.cli.train.find_spec", lambda name: None)
    assert bitnet("train", "--out", tmp_path, "--resume") == 2
    assert "bitnet-ternary[train]" in capsys.readouterr().err
