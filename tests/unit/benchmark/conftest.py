"""A stand-in for the program llama-bench: it takes the same options and prints the documented JSON."""

import json
import sys

import pytest

from bitnet import _core

PROGRAM = """#!{python}
import json, sys
given = sys.argv[1:]
options = dict(zip(given[::2], given[1::2]))
with open({log!r}, "a") as log:
    log.write(json.dumps(options) + "\\n")
result = {{
    "build_commit": "abc1234", "model_type": "bitnet 2B TQ2_0 - 2.06 bpw ternary",
    "model_size": 1000, "model_n_params": 4000, "n_threads": int(options["-t"]),
    "n_prompt": int(options["-p"]), "n_gen": int(options["-n"]), "n_depth": int(options.get("-d", 0)),
    "avg_ts": 50.0, "stddev_ts": 0.0, "samples_ts": [50.0],
}}
{after}
print(json.dumps([result]))
"""


class FakeLlamaBench:
    def __init__(self, folder):
        self.program, self._log = folder / "llama-bench", folder / "calls"
        self.gguf = folder / "model.gguf"
        self.gguf.touch()
        self.does("")

    def does(self, after):
        """Let it run these Python lines before it prints."""
        text = PROGRAM.format(python=sys.executable, log=str(self._log), after=after)
        self.program.write_text(text)
        self.program.chmod(0o755)

    @property
    def calls(self):
        """The options of every call."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]


@pytest.fixture
def llama_bench(tmp_path):
    return FakeLlamaBench(tmp_path)


@pytest.fixture
def quick_bandwidth(monkeypatch):
    monkeypatch.setattr(_core, "read_bandwidth", lambda threads, megabytes: 10.0 * threads)
