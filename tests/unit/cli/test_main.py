"""The program around the verbs: start-up, exit codes, one line for what is the user's fault."""

import os
import subprocess
import sys

import pytest

import bitnet as package
from bitnet.cli import main


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_imports_nothing_heavy():
    result = python(
        "import sys\nfrom bitnet.cli.main import run\n"
        "try: run(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('numpy', 'torch', 'tokenizers', 'jinja2') if name in sys.modules])"
    )
    assert result.stdout.splitlines()[-1] == "[]", result.stderr


def test_a_verb_imports_only_its_own_module():
    result = python(
        "import sys\nfrom bitnet.cli.main import run\n"
        "try: run(['info', '--help'])\nexcept SystemExit: pass\n"
        "print(sorted(name for name in sys.modules if name.startswith('bitnet.cli.')))"
    )
    assert result.stdout.splitlines()[-1] == "['bitnet.cli.info', 'bitnet.cli.main']"


def test_help_lists_every_verb(bitnet):
    result = bitnet("--help")
    assert result.code == 0
    for verb in main.VERBS:
        assert verb in result.out


@pytest.mark.parametrize("verb", main.VERBS)
def test_every_verb_has_help(bitnet, verb):
    result = bitnet(verb, "--help")
    assert result.code == 0
    assert "Usage: bitnet " + verb in " ".join(result.out.split())


def test_version(bitnet):
    result = bitnet("--version")
    assert (result.code, result.out) == (0, f"bitnet {package.__version__}\n")


@pytest.mark.parametrize("arguments", [["frobnicate"], ["info", "--frobnicate"], ["generate", "x", "--seed"]])
def test_usage_errors(bitnet, arguments):
    result = bitnet(*arguments)
    assert result.code == 2
    assert arguments[-1] in result.err
    assert "Traceback" not in result.err


def failing(error):
    def build(verbs):
        def app(**options):
            raise error

        return app

    return build


def test_errors_become_one_line(bitnet, monkeypatch):
    monkeypatch.setattr(main, "build", failing(package.FormatError("a file:\nis damaged")))
    assert bitnet("info").refusal == "error: a file: is damaged"


def test_a_file_that_cannot_be_read(bitnet, monkeypatch):
    monkeypatch.setattr(main, "build", failing(PermissionError(13, "Permission denied", "/a/file")))
    assert bitnet("info").refusal == "error: /a/file: Permission denied"


def test_no_memory(bitnet, monkeypatch):
    monkeypatch.setattr(main, "build", failing(MemoryError()))
    assert "memory" in bitnet("generate").refusal


def test_interrupt(bitnet, monkeypatch):
    monkeypatch.setattr(main, "build", failing(KeyboardInterrupt()))
    result = bitnet("generate")
    assert (result.code, result.out, result.err) == (130, "", "")


def test_defects_keep_their_traceback(monkeypatch):
    monkeypatch.setattr(main, "build", failing(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main.run(["generate"])


def test_a_reader_that_leaves_is_no_error(ids_model):
    program = subprocess.Popen(
        [sys.executable, "-m", "bitnet", "info", "--json", str(ids_model)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    program.stdout.close()
    _, err = program.communicate()
    assert err == ""
