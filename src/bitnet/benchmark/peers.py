"""Other engines, run in turn with ours: transformers, llama.cpp as a Python package, any llama-bench program.

The Python peers live in a process of their own, so that neither their memory nor their idle threads weigh on
our numbers. A peer first says what it computes: formats, activation and head differ, and a ratio without that
says little.
"""

from __future__ import annotations

import copy
import ctypes
import json
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

from bitnet.benchmark.cases import Case, Runner, fixed_ids
from bitnet.errors import InputError, ResourceError, UnsupportedError
from bitnet.json_file import read_json_object

_WARM_UP_STEPS = 2  # of decode; the peers' own first-use work is done then, and transformers' steps are slow
_LLAMA_ERROR = 4  # GGML_LOG_LEVEL_ERROR
_LLAMA_ACTIVATION = (
    "llama.cpp's graph for the architecture `bitnet` applies SiLU where relu² is meant: equal cost, other "
    "text (forks differ). Activations are quantised in blocks that depend on the type of the weights; keys "
    "and values are float16; the head has the type of the file's output or embedding tensor. Its threads "
    "spin while they wait: where something else keeps a core busy, as many threads as cores are slower than "
    "one."
)


class Peer(Runner, Protocol):
    """Another engine."""

    @property
    def name(self) -> str: ...

    def describe(self) -> str:
        """What it computes, in a sentence."""
        ...

    def refusal(self, case: Case) -> str | None:
        """Why it cannot run a case, or None."""
        ...

    def close(self) -> None:
        """Free its memory."""
        ...


def find_peer(against: str, directory: Path, gguf: Path | None) -> Peer:
    """The peer that `--against` names, started.

    Args:
        against: transformers, llama.cpp, or llama-bench:PATH of the program.
        directory: our model, which transformers runs too.
        gguf: the file the llama.cpp peers run.
    Raises:
        InputError: an unknown peer, or a GGUF file that is missing or not named.
        ResourceError: the peer is not installed or does not start; the message says what to install.
    """
    if against == "transformers":
        _require("transformers", "torch", "accelerate")
        return _ProcessPeer(_Transformers, str(directory))
    if against == "llama.cpp":
        _require("llama_cpp")
        return _ProcessPeer(_LlamaCpp, str(_gguf(gguf, against)))
    program = against.removeprefix("llama-bench:")
    if program in (against, ""):
        raise InputError(
            f"--against {against}: unknown; use transformers, llama.cpp or llama-bench:PATH of the program"
        )
    return LlamaBench(program, _gguf(gguf, "llama-bench"))


def _require(*modules: str) -> None:
    extra = {"transformers": "transformers", "llama_cpp": "llama-cpp"}[modules[0]]
    for module in modules:
        if find_spec(module) is None:
            raise ResourceError(f"the peer needs the package {module}; install the extra `{extra}`")


def _gguf(path: Path | None, peer: str) -> Path:
    if path is None:
        raise InputError(f"{peer} runs a GGUF file; name it with --gguf")
    if not path.is_file():
        raise InputError(f"--gguf {path}: no such file")
    return path


class LlamaBench:
    """A llama-bench program (llama.cpp, bitnet.cpp, ik_llama.cpp): one call a repetition, its own warm-up.

    Raises:
        ResourceError: the program does not run, fails, or prints something else than its JSON.
    """

    def __init__(self, program: str, gguf: Path) -> None:
        self._program, self._gguf = program, gguf
        self._about = self._call(Case("pp", 1, 1))

    @property
    def name(self) -> str:
        return "llama-bench"

    def describe(self) -> str:
        build, kind, parameters, size = (
            self._about.get(key, "unknown")
            for key in ("build_commit", "model_type", "model_n_params", "model_size")
        )
        return (
            f"{self._program} (commit {build}): {kind}, {parameters} parameters in {size} bytes. "
            f"{_LLAMA_ACTIVATION}"
        )

    def refusal(self, case: Case) -> str | None:
        return "llama-bench decodes one sequence" if case.batch > 1 else None

    def prepare(self, case: Case) -> None:
        self._case = case

    def run(self) -> float:
        result = self._call(self._case)
        try:
            return float(result["samples_ts"][0] if result.get("samples_ts") else result["avg_ts"])
        except (KeyError, TypeError, ValueError):
            raise self._error("printed no speed (avg_ts, samples_ts)") from None

    def close(self) -> None:
        pass

    def _call(self, case: Case) -> dict[str, Any]:
        prompt, generated = (case.tokens, 0) if case.phase == "pp" else (0, case.tokens)
        command = [self._program, "-m", str(self._gguf), "-o", "json", "-r", "1", "-ngl", "0"]
        command += ["-p", str(prompt), "-n", str(generated), "-t", str(case.threads)]
        if case.depth:  # older programs do not know it
            command += ["-d", str(case.depth)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        except OSError as error:
            raise self._error(f"does not run: {error.strerror}") from None
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise self._error(f"ended with {done.returncode}: {last[0]}")
        try:
            results = json.loads(done.stdout)
        except ValueError:
            raise self._error("printed no JSON; is it a llama-bench with `-o json`?") from None
        for result in results if isinstance(results, list) else []:
            if isinstance(result, dict) and (result.get("n_prompt"), result.get("n_gen")) == (
                prompt,
                generated,
            ):
                return result
        raise self._error(f"printed no result for {case.test}")

    def _error(self, what: str) -> ResourceError:
        return ResourceError(f"llama-bench {self._program}: {what}")


class _Transformers:
    """Hugging Face's BitNetForCausalLM in bfloat16; lives in the peer's process."""

    def __init__(self, directory: str) -> None:
        self._torch, self._library = import_module("torch"), import_module("transformers")
        kind = read_json_object(Path(directory) / "config.json").get("model_type")
        if kind not in ("bitnet", "bitnet-b1.58"):
            raise UnsupportedError(
                f"{directory}: transformers' BitNet is not what its model_type {kind!r} means; leave out "
                "--against transformers, or compare a plain b1.58 model"
            )
        model = self._library.BitNetForCausalLM.from_pretrained(directory, dtype=self._torch.bfloat16)
        self._model = model.eval()
        self.name = f"transformers {self._library.__version__}"

    def describe(self) -> str:
        return (
            f"{self.name}, torch {self._torch.__version__}: ternary weights widened to bfloat16, products in "
            "bfloat16, activations rounded to 8 bits a token; activation function, keys, values and head "
            "in bfloat16"
        )

    def refusal(self, case: Case) -> str | None:
        return None

    def prepare(self, case: Case) -> None:
        self._torch.set_num_threads(case.threads)
        self._case = case
        vocab = self._model.config.vocab_size
        ids = [fixed_ids(vocab, case.depth + case.tokens, sequence) for sequence in range(case.batch)]
        self._ids = self._torch.tensor(ids)
        self._cache = self._library.DynamicCache()
        with self._torch.inference_mode():
            if case.depth:
                self._forward(self._cache, 0, case.depth)
            self._pass_through(case.steps[:_WARM_UP_STEPS])

    def run(self) -> float:
        with self._torch.inference_mode():
            seconds = self._pass_through(self._case.steps)
        return self._case.batch * self._case.tokens / seconds

    def _pass_through(self, steps: list[int]) -> float:
        cache, position = copy.deepcopy(self._cache), self._case.depth
        start = time.perf_counter()
        for step in steps:
            self._forward(cache, position, position + step)
            position += step
        return time.perf_counter() - start

    def _forward(self, cache: Any, start: int, stop: int) -> None:
        ids = self._ids[:, start:stop]
        self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)


class _LlamaCpp:
    """llama.cpp through the package llama-cpp-python; lives in the peer's process."""

    def __init__(self, gguf: str) -> None:
        self._library, self._gguf = import_module("llama_cpp"), gguf
        self.name = f"llama.cpp (llama-cpp-python {self._library.__version__})"
        self._model = self._load(context=64, threads=1)

    def describe(self) -> str:
        architecture = self._model.metadata.get("general.architecture", "unknown")
        model = self._model.model
        kind = ctypes.create_string_buffer(256)
        self._library.llama_model_desc(model, kind, len(kind))
        return (
            f"{self.name}: {kind.value.decode(errors='replace')}, architecture {architecture}, "
            f"{self._library.llama_model_n_params(model)} parameters in "
            f"{self._library.llama_model_size(model)} bytes. {_LLAMA_ACTIVATION}"
        )

    def refusal(self, case: Case) -> str | None:
        return "llama-cpp-python decodes one sequence" if case.batch > 1 else None

    def prepare(self, case: Case) -> None:
        limit = case.depth + case.tokens
        self._case = case
        self._model = self._load(limit, case.threads)
        self._ids = fixed_ids(self._model.n_vocab(), limit)
        if case.depth:
            self._model.eval(self._ids[: case.depth])
        self._pass_through(case.steps[:_WARM_UP_STEPS])

    def run(self) -> float:
        start = time.perf_counter()
        self._pass_through(self._case.steps)
        return self._case.tokens / (time.perf_counter() - start)

    def _pass_through(self, steps: list[int]) -> None:
        position = self._case.depth
        self._model.n_tokens = position  # eval forgets what lies beyond
        for step in steps:
            self._model.eval(self._ids[position : position + step])
            position += step

    def _load(self, context: int, threads: int) -> Any:
        complaints, _ = _llama_log(self._library)
        complaints.clear()
        try:
            return self._library.Llama(
                self._gguf,
                n_ctx=max(context, 64),
                n_batch=2048,  # llama-bench's
                n_threads=threads,
                n_threads_batch=threads,
                n_gpu_layers=0,
                verbose=False,
            )
        except (ValueError, RuntimeError) as error:
            reason = complaints[0] if complaints else error
            raise ResourceError(f"llama.cpp cannot load {self._gguf}: {reason}") from None


@cache
def _llama_log(library: Any) -> tuple[list[str], Any]:
    """Where llama.cpp's errors go: its exceptions do not say why a file was refused.

    The callback is kept, for the library calls it as long as the process lives.
    """
    complaints: list[str] = []

    def note(level: int, text: bytes, _: Any) -> None:
        if level == _LLAMA_ERROR:
            complaints.append(text.decode(errors="replace").strip())

    callback = library.llama_log_callback(note)
    library.llama_log_set(callback, ctypes.c_void_p(0))
    return complaints, callback


class _ProcessPeer:
    """A peer whose work is done in a process of its own."""

    def __init__(self, kind: type[_Transformers] | type[_LlamaCpp], path: str) -> None:
        self._pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
        self._own_name: str = self._ask(_start, kind, path)

    @property
    def name(self) -> str:
        return self._own_name

    def describe(self) -> str:
        return str(self._ask(_call, "describe"))

    def refusal(self, case: Case) -> str | None:
        answer = self._ask(_call, "refusal", case)
        return None if answer is None else str(answer)

    def prepare(self, case: Case) -> None:
        self._ask(_call, "prepare", case)

    def run(self) -> float:
        return float(self._ask(_call, "run"))

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _ask(self, function: Any, *arguments: Any) -> Any:
        try:
            return self._pool.submit(function, *arguments).result()
        except BrokenProcessPool:
            raise ResourceError(
                "the peer's process ended without a word; it may have lacked memory"
            ) from None


_peer: Any = None  # in the peer's process: the one it serves


def _start(kind: type[_Transformers] | type[_LlamaCpp], path: str) -> str:
    global _peer
    _peer = kind(path)
    return str(_peer.name)


def _call(method: str, *arguments: Any) -> Any:
    return getattr(_peer, method)(*arguments)
