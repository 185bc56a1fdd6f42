"""`bitnet train` from text to an exported folder, and its refusals."""

import pytest

from bitnet.cli.main import run
from bitnet.load import load_model


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("\n<|endoftext|>\n".join(["The cat sat on the mat. So it goes."] * 90), encoding="utf-8")
    return path


def bitnet(*arguments) -> int:
    with pytest.raises(SystemExit) as exit_:
        run([str(argument) for argument in arguments])
    return exit_.value.code or 0


def test_trains_resumes_and_exports(text, tmp_path, capsys):
    out = tmp_path / "run"
    options = ("--vocab-size", 270, "--batch", 2, "--seq", 16, "--threads", 1)
    assert bitnet("train", "--data", f"{text}:2", "--out", out, "--steps", 2, *options) == 0
    assert (
        bitnet(
            "train", "--out", out, "--resume", "--steps", 3, "--threads", 1, "--export", tmp_path / "packed"
        )
        == 0
    )
    assert "step 3" in capsys.readouterr().out
    assert bitnet("train", "--out", out, "--export", tmp_path / "bf16", "--export-format", "bf16") == 0
    for name, mode in (("packed", "offline"), ("bf16", "online")):
        model = load_model(tmp_path / name, engine="torch")
        assert model.config.quantization.quantization_mode == mode
        assert model.config.vocab_size == 270


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to do"),
        (("--data", "{text}"), "--steps"),
        (("--data", "{text}", "--steps", "1", "--preset", "none"), "unknown preset"),
        (("--data", "missing.txt", "--steps", "1"), "missing.txt"),
        (("--resume",), "no training run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(text, tmp_path, capsys, arguments, message):
    filled = [argument.format(text=text) for argument in arguments]
    assert bitnet("train", "--out", tmp_path / "run", *filled) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_missing_torch_names_the_extra(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bitnet.cli.train.find_spec", lambda name: None)
    assert bitnet("train", "--out", tmp_path, "--resume") == 2
    assert "bitnet-ternary[torch]" in capsys.readouterr().err
