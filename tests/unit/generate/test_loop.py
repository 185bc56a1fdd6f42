import numpy as np
import pytest

from bitnet.errors import FormatError, InputError
from bitnet.generate import SamplingParams, generate, stream

GREEDY = SamplingParams(temperature=0)


def test_greedy_follows_the_highest_logit_with_one_prefill_and_single_steps(toy):
    model = toy()
    answer = generate(model, [5, 6, 7], SamplingParams(temperature=0, max_tokens=6))
    ids, by_hand = [5, 6, 7], toy()
    for _ in range(6):
        ids.append(int(np.argmax(by_hand.forward([(by_hand.new_cache(64), list(ids))])[0])))
    assert list(answer.ids) == ids[3:]
    assert model.runs == [3, 1, 1, 1, 1, 1]
    assert answer.stop_reason == "length"


def test_text_stops_before_the_stop_token(toy):
    answer = generate(toy("Grüße 😀"), "Hi", GREEDY)
    assert answer.text == "Grüße 😀"
    assert answer.ids[-1] == 2
    assert answer.stop_reason == "stop_token"
    assert answer.prompt_tokens == 3  # <bos>, H, i


def test_pieces_are_the_text_and_never_half_a_character(toy):
    running = stream(toy("é😀!"), "x", GREEDY)
    pieces = list(running)
    assert pieces == ["", "é", "", "", "", "😀", "!", ""]
    assert "".join(pieces) == running.result.text


@pytest.mark.parametrize(
    ("stop", "text", "reason"),
    [
        (("STOP",), "go on ", "stop_string"),  # spread over four tokens
        (("ST", "STOP"), "go on ", "stop_string"),
        (("STOPPED",), "go on STOP it", "stop_token"),  # held back, then let go
        (("it!",), "go on STOP it", "stop_token"),  # still held back when the answer ends
        ((" it",), "go on STOP", "stop_string"),
        (("g",), "", "stop_string"),
    ],
)
def test_stop_strings(toy, stop, text, reason):
    running = stream(toy("go on STOP it"), "x", SamplingParams(temperature=0, stop=stop))
    assert "".join(running) == text
    assert (running.result.text, running.result.stop_reason) == (text, reason)


def test_max_tokens_lets_held_back_text_go_and_ends_a_broken_character(toy):
    answer = generate(toy("ab😀"), "x", SamplingParams(temperature=0, max_tokens=4, stop=("b😀!",)))
    assert answer.text == "ab�"
    assert answer.stop_reason == "length"
    assert len(answer.ids) == 4


def test_a_stop_string_completed_by_the_last_broken_character_counts(toy):
    answer = generate(toy("ab😀"), "x", SamplingParams(temperature=0, max_tokens=3, stop=("b�",)))
    assert (answer.text, answer.stop_reason) == ("a", "stop_string")


@pytest.mark.parametrize(("prompt", "generated"), [(8, 1), (5, 4)])
def test_the_end_of_the_context_ends_the_answer(toy, prompt, generated):
    answer = generate(toy(context=8), [9] * prompt, SamplingParams(temperature=0, max_tokens=100))
    # the last id needs no place in the context
    assert len(answer.ids) == generated
    assert answer.stop_reason == "length"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "empty"),
        ([], "empty"),
        ([1] * 9, "9 tokens; the model's context holds 8"),
        ([5, 260], "260 .* outside the vocabulary 0..259"),
        ([-1], "-1 .* outside"),
        ([1.5], "no id"),
    ],
)
def test_bad_prompts_are_refused_before_anything_runs(toy, prompt, words):
    model = toy(context=8)
    with pytest.raises(InputError, match=words):
        stream(model, prompt, GREEDY)
    assert model.runs == []


def test_without_a_tokenizer_ids_work_and_text_does_not(toy):
    model = toy("hey", with_tokenizer=False)
    answer = generate(model, np.array([4, 5]), GREEDY)
    assert (answer.text, len(answer.ids)) == ("", 4)
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        generate(model, "text", GREEDY)


def test_stop_tokens_can_be_replaced(toy):
    params = SamplingParams(temperature=0, max_tokens=5)
    assert generate(toy("ab"), "x", params, stop_tokens=()).ids[2] == 2
    assert len(generate(toy("ab"), "x", params, stop_tokens=()).ids) == 5


def test_control_tokens_in_a_text_prompt_are_text(toy):
    model = toy("a")
    assert generate(model, "<turn>", GREEDY).prompt_tokens == 1 + len("<turn>")


def test_an_interrupt_leaves_a_sound_result(toy, monkeypatch):
    model = toy("abcdef")
    running = stream(model, "x", GREEDY)
    assert [next(running), next(running)] == ["a", "b"]

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(model, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(running)
    assert running.result.text == "ab"
    assert running.result.stop_reason is None
    assert list(running) == []


def test_rates_count_what_ran(toy, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr("bitnet.generate.loop.time.perf_counter", lambda: float(next(clock)))
    answer = generate(toy("abc"), [4, 5, 6], GREEDY)
    assert (answer.prompt_seconds, answer.prompt_rate) == (1, 3)
    assert (answer.generation_seconds, answer.generation_rate) == (4, 3 / 4)


def test_damaged_logits_are_reported(toy, monkeypatch):
    model = toy()
    broken = np.zeros(model.config.vocab_size, dtype=np.float32)
    broken[7] = np.nan
    monkeypatch.setattr(model, "forward", lambda batch: [broken])
    with pytest.raises(FormatError, match=r"nan as the logit of id 7 \(1 of 260"):
        generate(model, "x", GREEDY)


def test_equal_seeds_draw_equal_answers(toy):
    def draw(seed):
        return generate(toy(), "x", SamplingParams(temperature=1, top_p=1, seed=seed, max_tokens=20)).ids

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
