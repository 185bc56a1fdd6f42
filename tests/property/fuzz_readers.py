"""Feed the readers what a coverage-guided fuzzer finds, for as long as it may run. pytest does not run this.

    pip install 'atheris>=3,<4'
    python tests/property/fuzz_readers.py safetensors CORPUS -max_total_time=600
    python tests/property/fuzz_readers.py gguf CORPUS -max_total_time=600

What must hold for every input is `survives` in test_hostile_checkpoints.py and test_hostile_gguf.py: accepted
or refused with a BitnetError, within twice the file's size in memory. An input that takes longer than 5
seconds or the process over 2 GB is a finding, too. libFuzzer's options go after CORPUS, a folder that it
fills. A finding is written to the working directory; it belongs into those tests.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path

import atheris
import test_hostile_checkpoints as checkpoints
import test_hostile_gguf as gguf

LIMITS = ["-timeout=5", "-rss_limit_mb=2048", "-max_len=65536"]


def main() -> None:
    if len(sys.argv) < 3 or sys.argv[1] not in ("safetensors", "gguf") or sys.argv[2].startswith("-"):
        sys.exit(__doc__)
    kind, corpus, *options = sys.argv[1:]
    Path(corpus).mkdir(parents=True, exist_ok=True)
    if kind == "safetensors":
        seeds, mutate = checkpoints.WHOLE, mutate_folder
    else:
        seeds, mutate = [gguf.TINY, gguf.WHOLE], mutate_file
    for number, seed in enumerate(seeds):
        (Path(corpus) / f"seed{number}").write_bytes(seed)
    run(kind, mutate, [sys.argv[0], *LIMITS, *options, corpus])


def run(kind: str, mutate: Callable[[bytes, int, int], bytes], arguments: list[str]) -> None:
    def test(content: bytes) -> None:
        if kind == "safetensors":
            checkpoints.survives(content)
        else:
            gguf.survives(content, gguf.read_container)
            gguf.survives(content)

    atheris.instrument_all()  # its import hook misses modules that an editable installation imports
    atheris.Setup(arguments, test, custom_mutator=mutate)
    atheris.Fuzz()


def mutate_folder(content: bytes, max_size: int, seed: int) -> bytes:
    """The JSON of one file edited as JSON, or some bytes changed."""
    if seed % 3:
        return checkpoints.edit_folder(content, random.Random(seed))[:max_size]
    return bytes(atheris.Mutate(content, len(content)))


def mutate_file(content: bytes, max_size: int, seed: int) -> bytes:
    """Words and bytes of the header changed, where libFuzzer alone would mostly hit the data behind it."""
    choose = random.Random(seed)
    end = min(len(content), gguf.HEADER_END + 200)
    if end == 0 or seed % 3 == 0:
        return bytes(atheris.Mutate(content, max_size))
    kind = choose.choice(["byte", "word", "cut", "double"])
    number = choose.choice([0, 1, 2, 2**31, 2**32 - 1, 2**61, 2**63, 2**64 - 1, choose.randrange(300)])
    return gguf.edited(content, [(choose.randrange(end), kind, number)])[:max_size]


if __name__ == "__main__":
    main()
