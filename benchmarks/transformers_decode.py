"""Tokens per second of transformers' own `generate`, alone and with bitnet.hf, and what the process holds.

    python benchmarks/transformers_decode.py FOLDER            # with the plug-in
    python benchmarks/transformers_decode.py FOLDER --plain    # transformers alone

A run is `generate`, greedy, with its cache, from a prompt of 16 tokens. Decode is the time that more tokens
take: (long - short answer) / (difference in tokens). The peak is Linux's VmHWM.
Needs the extra `transformers`.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="folder of a BitNet checkpoint")
    parser.add_argument("--plain", action="store_true", help="transformers without the plug-in")
    parser.add_argument("--tokens", type=int, default=32, help="tokens that are timed (default 32)")
    parser.add_argument("--runs", type=int, default=5, help="(default 5)")
    arguments = parser.parse_args()
    transformers = import_module("transformers")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not arguments.plain:
        import_module("bitnet.hf")
    start = time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model)
    print(f"loaded in {time.perf_counter() - start:.1f} s, {model.dtype}, {torch.get_num_threads()} threads")
    generate(model, 2)  # warm up; compiles, without the plug-in
    speeds = []
    for _ in range(arguments.runs):
        short = generate(model, 1)
        speed = arguments.tokens / (generate(model, arguments.tokens + 1) - short)
        load = os.getloadavg()[0]
        print(f"prompt and first token {short:.2f} s, decode {speed:.2f} tokens/s, load {load:.1f}")
        speeds.append(speed)
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+)", status)
    gigabytes = int(peak[1]) * 1.024e-6 if peak else 0.0
    print(f"median {statistics.median(speeds):.2f} tokens/s, peak {gigabytes:.2f} GB")


def generate(model: Any, tokens: int) -> float:
    """Seconds for a greedy answer of exactly so many tokens."""
    prompt = torch.arange(1, 17)[None]
    start = time.perf_counter()
    model.generate(prompt, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
