"""setup.sh: what it says before it installs anything. No network, nothing built."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_TOOLS = ("bash", "basename", "cat", "dirname", "grep", "id", "mkdir", "rm", "sed", "tail")

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="setup.sh needs bash")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what setup.sh reads, in a folder whose name holds a space, without a .venv."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("setup.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, folder / name)
    return folder


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A folder to be the whole PATH: the system's tools, but neither Python nor a compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in SYSTEM_TOOLS:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    program(folder, "uname", "echo Linux")
    return folder


def program(folder: Path, name: str, script: str) -> None:
    """An executable shell script on the machine."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def run(
    checkout: Path, *arguments: str, path: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "CXX")}
    if path is not None:
        variables["PATH"] = str(path)
    return subprocess.run(
        [str(checkout / "setup.sh"), *arguments],
        env=variables | environment,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line with which setup.sh refused."""
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def test_is_valid_bash() -> None:
    subprocess.run(["bash", "-n", str(ROOT / "setup.sh")], check=True)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_every_command_and_changes_nothing(checkout: Path, option: str) -> None:
    result = run(checkout, option)
    assert result.returncode == 0
    for word in ("run", "test", "dev", "--with torch", "--model", "--yes"):
        assert word in result.stdout
    assert not (checkout / ".venv").exists()


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (["--frobnicate"], "--frobnicate"),
        (["walk"], "walk"),
        (["--with", "jazz"], "jazz"),
        (["--with"], "--with"),
        (["--model"], "--model"),
        (["--model", "nonsense", "--yes"], "nonsense"),
        (["dev", "more"], "more"),
    ],
)
def test_unknown_arguments_are_named(checkout: Path, arguments: list[str], culprit: str) -> None:
    assert culprit in refused(run(checkout, *arguments))
    assert not (checkout / ".venv").exists()


def test_without_a_terminal_it_asks_for_flags(checkout: Path) -> None:
    message = refused(run(checkout))
    assert "--yes" in message
    assert "--model" in message


def test_missing_python_and_compiler_are_named_with_one_command(checkout: Path, machine: Path) -> None:
    program(machine, "apt-get", "exit 99")  # present, and not to be run
    message = refused(run(checkout, "run", path=machine))
    assert "Python 3.10" in message
    assert "C++17 compiler" in message
    assert "apt-get install python3 python3-venv python3-dev g++" in message


@pytest.mark.parametrize(
    ("manager", "command"),
    [("apt-get", "apt-get install g++"), ("dnf", "dnf install gcc-c++"), ("pacman", "pacman -S gcc")],
)
def test_missing_compiler(checkout: Path, machine: Path, manager: str, command: str) -> None:
    (machine / "python3").symlink_to(sys.executable)
    program(machine, manager, "exit 99")
    message = refused(run(checkout, "run", path=machine))
    assert command in message
    assert "Python" not in message


def test_missing_venv_module(checkout: Path, machine: Path) -> None:
    # Debian's Python without python3-venv: every other question is answered by the real one.
    program(machine, "python3", f'case $2 in *ensurepip*) exit 1;; *) exec "{sys.executable}" "$@";; esac')
    program(machine, "c++", "exit 0")
    program(machine, "apt-get", "exit 99")
    message = refused(run(checkout, "run", path=machine))
    assert "venv" in message
    assert "apt-get install python3-venv" in message


def test_old_python_is_refused(checkout: Path, machine: Path) -> None:
    program(machine, "python3", "exit 1")  # what `sys.exit(sys.version_info < (3, 10))` gives there
    program(machine, "c++", "exit 0")
    assert "Python 3.10 or newer" in refused(run(checkout, "run", path=machine))


def test_named_python_and_compiler_must_exist(checkout: Path) -> None:
    assert "/no/python" in refused(run(checkout, "run", PYTHON="/no/python"))
    assert "/no/c++" in refused(run(checkout, "run", CXX="/no/c++ -O3"))


def test_the_story_it_tells_is_long_enough() -> None:
    """With another embedded model another seed may be needed: at least 100 words, and a speed."""
    (line,) = re.findall(
        r'set -- ("Once upon a time" .*?) #', (ROOT / "setup.sh").read_text(encoding="utf-8")
    )
    story = subprocess.run(
        [sys.executable, "-m", "bitnet", "generate", *shlex.split(line)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(story.stdout.split()) >= 100
    assert "tokens/s" in story.stderr
