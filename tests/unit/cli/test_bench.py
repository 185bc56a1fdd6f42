"""`bitnet bench`: rows for machines and people, parity before numbers, refusals before anything runs."""

import json
import sys

import pytest

from bitnet import _core

# takes any options of llama-bench and prints its JSON
LLAMA_BENCH = """#!{python}
import json, sys
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
print(json.dumps([{{
    "model_type": "bitnet 2B TQ2_0",
    "n_prompt": int(options["-p"]), "n_gen": int(options["-n"]), "avg_ts": 50.0
}}]))
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(_core, "read_bandwidth", lambda threads, megabytes: 10.0 * threads)


@pytest.fixture
def tiny(golden):
    return golden / "packed_offline"


@pytest.fixture
def llama_bench(tmp_path):
    program = tmp_path / "llama-bench"
    program.write_text(LLAMA_BENCH.format(python=sys.executable))
    program.chmod(0o755)
    (tmp_path / "model.gguf").touch()
    return ["--against", f"llama-bench:{program}", "--gguf", tmp_path / "model.gguf"]


def rows(result):
    assert result.code == 0, result.err
    return [json.loads(line) for line in result.out.splitlines()]


def test_a_row_a_case(bitnet, tiny):
    found = rows(
        bitnet(
            "bench", "-m", tiny, "-p", 8, "-n", "4", "-t", "1,2", "-r", 3, "--batch", "1,3", "-d", 2, "--json"
        )
    )
    assert [(row["test"], row["threads"], row["batch"]) for row in found] == [
        ("pp8", 1, 1),
        ("tg4", 1, 1),
        ("tg4", 1, 3),
        ("pp8", 2, 1),
        ("tg4", 2, 1),
        ("tg4", 2, 3),
    ]
    for row in found:
        assert row["depth"] == 2
        assert len(row["samples"]) == 3
        low, high = row["tokens_per_second_min"], row["tokens_per_second_max"]
        assert 0 < low <= row["tokens_per_second"] <= high
        assert row["isa"] == _core.chosen_isa()
        assert row["bandwidth_gigabytes_per_second"] == 10 * row["threads"]
        assert 0 < row["load_seconds"] <= row["first_token_seconds"]
        assert row["parameters"] == 1_806_336
        assert {"cpu", "version", "commit", "head", "system", "date"} <= row.keys()
        assert (row["gigabytes_per_second"] is None) == row["test"].startswith("pp")
    if sys.platform == "linux":
        assert all(row["peak_memory_bytes"] > row["anonymous_memory_bytes"] > 0 for row in found)


def test_decode_counts_the_bytes_of_the_weights(bitnet, tiny):
    (row,) = rows(bitnet("bench", "-m", tiny, "-p", 0, "-n", 4, "-t", 1, "-r", 1, "--batch", 2, "--json"))
    read = row["step_bytes"] * row["tokens_per_second"] / 2 / 1e9
    assert row["gigabytes_per_second"] == pytest.approx(read, rel=1e-3)
    assert row["bandwidth_share"] == pytest.approx(read / 10, rel=1e-3)


def test_table(bitnet):
    result = bitnet("bench", "-p", 8, "-n", 4, "-t", 1, "-r", 2)
    assert result.code == 0
    assert "stories: 5,776,640 parameters" in result.out
    for word in ("pp8", "tg4", "tokens/s", "of bandwidth", "first token s", "without files MB"):
        assert word in result.out
    assert "parity" in result.err


def test_threads_come_from_the_environment(bitnet, tiny, monkeypatch):
    monkeypatch.setenv("BITNET_THREADS", "3")
    (row,) = rows(bitnet("bench", "-m", tiny, "-p", 4, "-n", 0, "-r", 1, "--json"))
    assert row["threads"] == 3
    monkeypatch.setenv("BITNET_THREADS", "many")
    assert "BITNET_THREADS" in bitnet("bench", "-m", tiny).refusal


def test_nothing_is_measured_on_a_wrong_kernel(bitnet, tiny, monkeypatch):
    monkeypatch.setattr(_core, "self_test", lambda isa: [("rms_norm", False, "row 3: 7, not 8")])
    result = bitnet("bench", "-m", tiny, "-p", 8, "-n", 4, "-t", 1, "--json")
    assert (result.code, result.out) == (1, "")
    assert "rms_norm" in result.err
    assert "Nothing was measured" in result.err


def test_against_a_peer(bitnet, tiny, llama_bench):
    arguments = ["bench", "-m", tiny, "-p", 8, "-n", 4, "-t", 1, "-r", 2, "--batch", "1,2", *llama_bench]
    result = bitnet(*arguments, "--json")
    found = rows(result)
    assert [(row["engine"], row["test"], row["batch"]) for row in found] == [
        ("bitnet", "pp8", 1),
        ("llama-bench", "pp8", 1),
        ("bitnet", "tg4", 1),
        ("llama-bench", "tg4", 1),
        ("bitnet", "tg4", 2),
    ]
    ours, theirs = found[:2]
    assert theirs["samples"] == [50, 50]
    assert theirs["ratio"] == pytest.approx(ours["tokens_per_second"] / 50, rel=1e-3)
    assert theirs["ratio_min"] <= theirs["ratio"] <= theirs["ratio_max"]
    for fact in ("A  bitnet", "ternary weights in 2 bits", "TQ2_0", "SiLU", "decodes one sequence"):
        assert fact in result.err
    assert "we are" in bitnet(*arguments).out


def test_plot(bitnet, tiny, tmp_path):
    arguments = ["bench", "-m", tiny, "-p", 8, "-n", 4, "-t", 1, "-r", 1, "--json", "--plot"]
    assert len(rows(bitnet(*arguments, tmp_path / "speed.png"))) == 2
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert ".png" in bitnet(*arguments, tmp_path / "speed.svg").refusal


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "many"], "'many' is no whole number"),
        (["-t", "1,"], "'' is no whole number"),
        (["-t", "0"], "threads: 0"),
        (["-r", "0"], "repetitions: 0"),
        (["-p", "0", "-n", "0"], "nothing to measure"),
        (["-p", "4000"], "context of 4000 tokens"),
        (["-n", "9999999999"], "no whole number"),
        (["--against", "ollama"], "llama-bench:PATH"),
        (["--against", "llama-bench:./llama-bench"], "--gguf"),
    ],
)
def test_refuses(bitnet, arguments, message):
    assert message in bitnet("bench", *arguments).refusal


def test_unknown_instruction_set(bitnet, monkeypatch):
    monkeypatch.setenv("BITNET_ISA", "mmx")
    assert "mmx" in bitnet("bench").refusal
