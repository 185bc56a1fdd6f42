"""Peers against stand-ins that speak their protocol; the real ones are not installed where tests run."""

import sys
from contextlib import closing
from pathlib import Path

import pytest

from bitnet.benchmark import peers
from bitnet.benchmark.cases import Case, fixed_ids
from bitnet.benchmark.peers import find_peer
from bitnet.errors import InputError, ResourceError, UnsupportedError

HERE = Path("model")


def start(llama_bench):
    return find_peer(f"llama-bench:{llama_bench.program}", HERE, llama_bench.gguf)


def test_llama_bench_is_called_as_documented(llama_bench):
    peer = start(llama_bench)
    for case in (Case("pp", 512, 2), Case("tg", 128, 1, depth=64)):
        peer.prepare(case)
        assert peer.run() == 50
    common = {"-m": str(llama_bench.gguf), "-o": "json", "-r": "1", "-ngl": "0"}
    assert llama_bench.calls[1:] == [
        common | {"-p": "512", "-n": "0", "-t": "2"},
        common | {"-p": "0", "-n": "128", "-t": "1", "-d": "64"},
    ]


def test_llama_bench_says_what_it_computes(llama_bench):
    text = start(llama_bench).describe()
    for fact in ("abc1234", "TQ2_0", "4000 parameters", "SiLU"):
        assert fact in text


def test_llama_bench_decodes_one_sequence(llama_bench):
    peer = start(llama_bench)
    assert peer.refusal(Case("tg", 8, 1)) is None
    assert "one sequence" in peer.refusal(Case("tg", 8, 1, batch=8))


@pytest.mark.parametrize(
    ("after", "message"),
    [
        ("sys.exit('error: unknown model architecture')", "ended with 1: error: unknown model architecture"),
        ("print('loading'); ", "no JSON"),
        ("result['n_gen'] = 7", "no result for pp1"),
        ("result = 3", "no result for pp1"),
    ],
)
def test_llama_bench_goes_wrong(llama_bench, after, message):
    llama_bench.does(after)
    with pytest.raises(ResourceError, match=message):
        start(llama_bench)


def test_llama_bench_without_a_speed(llama_bench):
    llama_bench.does("del result['avg_ts'], result['samples_ts']")
    peer = start(llama_bench)
    peer.prepare(Case("tg", 8, 1))
    with pytest.raises(ResourceError, match="no speed"):
        peer.run()


def test_older_programs_give_the_mean_only(llama_bench):
    llama_bench.does("del result['samples_ts']; result['avg_ts'] = 12.5")
    peer = start(llama_bench)
    peer.prepare(Case("tg", 8, 1))
    assert peer.run() == 12.5


def test_a_program_that_is_missing(llama_bench, tmp_path):
    with pytest.raises(ResourceError, match="does not run: No such file"):
        find_peer(f"llama-bench:{tmp_path / 'nothing'}", HERE, llama_bench.gguf)


@pytest.mark.parametrize("against", ["ollama", "llama-bench", "llama-bench:"])
def test_unknown_peers(against, llama_bench):
    with pytest.raises(InputError, match="llama-bench:PATH"):
        find_peer(against, HERE, llama_bench.gguf)


def test_gguf_must_be_named_and_there(llama_bench, tmp_path):
    with pytest.raises(InputError, match="--gguf"):
        find_peer(f"llama-bench:{llama_bench.program}", HERE, None)
    with pytest.raises(InputError, match="no such file"):
        find_peer(f"llama-bench:{llama_bench.program}", HERE, tmp_path / "nothing.gguf")


@pytest.mark.parametrize(
    ("against", "extra"), [("transformers", "`transformers`"), ("llama.cpp", "`llama-cpp`")]
)
def test_peers_that_are_not_installed(against, extra, monkeypatch, llama_bench):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    with pytest.raises(ResourceError, match=f"install the extra {extra}"):
        find_peer(against, HERE, llama_bench.gguf)


# llama-cpp-python as far as it is used: `eval` appends at `n_tokens`
LLAMA_CPP = """
__version__ = "0.3"

class Llama:
    metadata, model = {"general.architecture": "bitnet"}, object()

    def __init__(self, path, *, n_threads, n_threads_batch, n_ctx, n_batch, n_gpu_layers, verbose):
        if path.endswith("broken.gguf"):
            log(3, b"a warning", None)
            log(4, b"error loading model: unknown model architecture: 'x'\\n", None)
            log(4, b"failed to load model\\n", None)
            raise ValueError("Failed to load model from file")
        assert n_threads == n_threads_batch
        assert n_gpu_layers == 0
        self.threads, self.n_ctx, self.n_tokens, self.evals = n_threads, n_ctx, 0, []

    def n_vocab(self):
        return 512

    def eval(self, tokens):
        assert self.n_tokens + len(tokens) <= self.n_ctx
        self.evals.append((self.n_tokens, list(tokens)))
        self.n_tokens += len(tokens)

def llama_log_callback(function):
    return function

def llama_log_set(callback, data):
    global log
    log = callback

def llama_model_desc(model, buffer, size):
    buffer.value = b"bitnet 2B TQ2_0"

def llama_model_n_params(model):
    return 4000

def llama_model_size(model):
    return 1000
"""


@pytest.fixture
def llama_cpp(monkeypatch, tmp_path):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / "llama_cpp.py").write_text(LLAMA_CPP)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.delitem(sys.modules, "llama_cpp", raising=False)
    yield tmp_path
    sys.modules.pop("llama_cpp", None)


def test_llama_cpp_starts_each_run_at_the_depth(llama_cpp):
    peer = peers._LlamaCpp("file")
    peer.prepare(Case("tg", 3, 2, depth=70))
    assert peer._model.threads == 2
    peer._model.evals.clear()
    for _ in range(2):
        assert peer.run() > 0
    ids = fixed_ids(512, 73)
    assert peer._model.evals == [(70 + i, [ids[70 + i]]) for i in range(3)] * 2
    peer.prepare(Case("pp", 80, 1))
    assert peer._model.evals == [(0, fixed_ids(512, 80))]


def test_llama_cpp_in_its_process(llama_cpp):
    """Answers and errors cross the border between the processes."""
    file = llama_cpp / "model.gguf"
    file.touch()
    with closing(find_peer("llama.cpp", HERE, file)) as peer:
        assert peer.name == "llama.cpp (llama-cpp-python 0.3)"
        for fact in ("TQ2_0", "architecture bitnet", "4000 parameters", "SiLU"):
            assert fact in peer.describe()
        assert "one sequence" in peer.refusal(Case("tg", 8, 1, batch=2))
        assert peer.refusal(Case("tg", 8, 1)) is None
        peer.prepare(Case("tg", 8, 1))
        assert peer.run() > 0
        assert "llama_cpp" not in sys.modules
    file = file.rename(llama_cpp / "broken.gguf")
    with pytest.raises(ResourceError, match=r"cannot load .*broken.gguf: .*unknown model architecture: 'x'$"):
        find_peer("llama.cpp", HERE, file)


def test_transformers_is_not_asked_for_what_it_computes_otherwise(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bitnet-variant"}')
    with pytest.raises(UnsupportedError, match="bitnet-variant"):
        peers._Transformers(str(tmp_path))
