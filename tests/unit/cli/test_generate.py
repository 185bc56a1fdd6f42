"""`bitnet generate`: where the prompt comes from, what is printed where."""

import json
import shutil

import pytest

import bitnet as package


def test_continues_a_text(bitnet, text_model):
    result = bitnet("generate", "Hello", "--model", text_model, "--max-tokens", 12, "--temperature", 0)
    answer = package.generate(
        package.load_model(text_model), "Hello", package.SamplingParams(temperature=0, max_tokens=12)
    )
    assert result.code == 0
    assert result.out == f"Hello{answer.text}\n"
    assert "prompt: 6 tokens" in result.err
    assert "generation: 12 tokens" in result.err
    assert "tokens/s" in result.err


def test_no_echo_and_quiet(bitnet, text_model):
    arguments = ("generate", "Hello", "--model", text_model, "--max-tokens", 5, "--seed", 1)
    loud = bitnet(*arguments)
    silent = bitnet(*arguments, "--no-echo", "--quiet")
    assert loud.out == "Hello" + silent.out
    assert silent.err == ""


def test_reads_a_pipe(bitnet, text_model):
    options = ("--model", text_model, "--max-tokens", 5, "--temperature", 0)
    piped = bitnet("generate", *options, stdin="Grüße\n".encode())
    assert piped.out == bitnet("generate", "Grüße", *options).out


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_ids_in_ids_out(bitnet, golden, golden_forward, engine):
    if engine == "torch":
        pytest.importorskip("bitnet.torch_model")
    expected = [int(token) for token in golden_forward["greedy_packed_offline"].reshape(-1)]
    prompt, answer = expected[:8], expected[8:]
    result = bitnet(
        "generate", "--model", golden / "packed_offline", "--engine", engine, "--temperature", 0,
        "--ids", ",".join(map(str, prompt)), "--max-tokens", len(answer),
    )  # fmt: skip
    assert [int(token) for token in result.out.split(",")] == answer


def test_stop_strings(bitnet, text_model):
    options = ("--model", text_model, "--max-tokens", 20, "--temperature", 0, "--no-echo")
    whole = bitnet("generate", "Hello", *options).out.rstrip("\n")
    stop = whole[8:11]
    stopped = bitnet("generate", "Hello", *options, "--stop", "never seen", "--stop", stop)
    assert stopped.out.rstrip("\n") == whole[: whole.index(stop)]
    assert "stop text" in stopped.err


def test_context_limit(bitnet, text_model):
    options = ("generate", "Hello", "--model", text_model, "--no-echo", "--temperature", 0)
    # 6 prompt tokens fill the context together with 4 of the answer; one more is written and not run.
    assert "generation: 5 tokens" in bitnet(*options, "--ctx-size", 10).err
    assert "6 tokens; --ctx-size allows 5" in bitnet(*options, "--ctx-size", 5).refusal
    assert "1..60000" in bitnet(*options, "--ctx-size", 60001).refusal
    assert "1..60000" in bitnet(*options, "--ctx-size", 0).refusal


def test_published_sampling_is_the_default(bitnet, text_model, tmp_path):
    folder = tmp_path / "greedy"
    shutil.copytree(text_model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"do_sample": False, "temperature": 0.6}))
    options = ("generate", "Hello", "--max-tokens", 16, "--quiet")
    published = bitnet(*options, "--model", folder)
    assert published.out == bitnet(*options, "--model", text_model, "--temperature", 0).out
    assert published.out != bitnet(*options, "--model", folder, "--temperature", 5, "--seed", 1).out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "prompt is empty"),
        (("",), "prompt is empty"),
        (("Hi", "--ids", "1"), "give one"),
        (("--ids", "1,two"), "'two'"),
        (("--ids", ""), "--ids"),
        (("--ids", "260"), "260"),
        (("--ids", "-1"), "-1"),
        (("Hi", "--threads", "0"), "threads"),
        (("Hi", "--max-tokens", "0"), "max_tokens"),
        (("Hi", "--temperature", "-1"), "temperature"),
        (("Hi", "--temperature", "nan"), "temperature"),
        (("Hi", "--top-k", "-1"), "top_k"),
        (("Hi", "--top-p", "0"), "top_p"),
        (("Hi", "--min-p", "2"), "min_p"),
        (("Hi", "--repeat-penalty", "0"), "repetition_penalty"),
        (("Hi", "--seed", "-1"), "seed"),
        (("Hi", "--stop", ""), "stop"),
    ],
)
def test_refuses(bitnet, text_model, arguments, words):
    assert words in bitnet("generate", *arguments, "--model", text_model).refusal


def test_refuses_a_prompt_beyond_the_context(bitnet, text_model):
    message = bitnet("generate", "x" * 60001, "--model", text_model).refusal
    assert "60002" in message
    assert "60000" in message


def test_at_a_terminal_only_the_embedded_model_needs_no_prompt(bitnet, text_model, monkeypatch):
    assert "no prompt" in bitnet("generate", "--model", text_model, terminal=True).refusal
    monkeypatch.setattr("bitnet.load.embedded_model", lambda: text_model)
    story = bitnet("generate", "--max-tokens", 3, terminal=True)
    assert story.code == 0
    assert story.out.startswith("Once upon a time")


def test_refuses_a_pipe_that_is_no_text(bitnet, text_model):
    assert "UTF-8" in bitnet("generate", "--model", text_model, stdin=b"\xff\xfe").refusal


def test_refuses_text_for_a_model_without_tokenizer(bitnet, ids_model):
    assert "ids" in bitnet("generate", "Hi", "--model", ids_model).refusal


def test_refuses_published_sampling_that_is_no_number(bitnet, broken):
    (broken / "generation_config.json").write_text('{"temperature": "hot"}')
    message = bitnet("generate", "--ids", "1", "--model", broken).refusal
    assert "generation_config.json" in message
    assert "'hot'" in message


@pytest.mark.parametrize("name", ["mmx", "AVX2", ""])
def test_refuses_an_unknown_instruction_set(bitnet, ids_model, monkeypatch, name):
    monkeypatch.setenv("BITNET_ISA", name)
    result = bitnet("generate", "--ids", "1", "--max-tokens", 1, "--model", ids_model)
    if name:
        assert "scalar" in result.refusal
    else:
        assert result.code == 0  # empty means not set
