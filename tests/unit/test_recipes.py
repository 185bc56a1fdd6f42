"""docs/recipes.md: each recipe runs as it stands there, and prints what it says it prints."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet.load import embedded_model

PAGE = Path(__file__).parents[2] / "docs" / "recipes.md"
SECTION = re.compile(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
RECIPES = {title: BLOCK.findall(body) for title, body in SECTION.findall(PAGE.read_text("utf-8"))}
CHAT_MODEL = "microsoft/bitnet-b1.58-2B-4T"
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """The story model with a template stands in for a chat model, which would have to be downloaded."""
    folder = shutil.copytree(embedded_model(), tmp_path_factory.mktemp("chat") / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": TEMPLATE}))
    return folder


@pytest.mark.parametrize("title", RECIPES)
def test_recipe(title, chat_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("BITNET_THREADS", "1")
    assert RECIPES[title], "a recipe without code"
    for language, code in RECIPES[title]:
        code = code.replace(CHAT_MODEL, chat_model.as_posix())
        if language == "python":
            exec(compile(code, title, "exec"), {"__name__": title})
            check_prints(code, capsys.readouterr().out)
        else:
            assert language == "sh"
            run_command(code)


def check_prints(code, output):
    """Comments behind `print` against the output; a comment of several lines is written with `|`."""
    promised = [
        part.strip()
        for comment in re.findall(r"^ *print\(.*\)  # (.+)$", code, re.M)
        for part in comment.split(" | ")
    ]
    if promised:
        assert [line.strip() for line in output.splitlines()] == promised


def run_command(code):
    program, *arguments = shlex.split(code)
    assert program == "bitnet"
    ended = subprocess.run(
        [sys.executable, "-m", "bitnet", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONWARNINGS": "error"},
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout
