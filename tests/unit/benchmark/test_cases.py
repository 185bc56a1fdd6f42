import pytest

from bitnet.benchmark.cases import Case, EngineRunner, Plan, fixed_ids, measure
from bitnet.errors import InputError
from bitnet.load import load_model


class Spy:
    """A runner or model that writes down what happens."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def prepare(self, case):
        self.log.append(("prepare", self.name))

    def run(self):
        self.log.append(("run", self.name))
        return float(len(self.log))


def test_runners_take_turns():
    log = []
    samples = measure([Spy("A", log), Spy("B", log)], Case("tg", 4, 1), 3)
    assert log == [("prepare", "A"), ("prepare", "B"), *[("run", "A"), ("run", "B")] * 3]
    assert samples == [[3.0, 5.0, 7.0], [4.0, 6.0, 8.0]]


def test_plan_multiplies():
    plan = Plan(prompts=(512, 0), generations=(128,), threads=(1, 2), batches=(1, 8), depths=(0, 100))
    assert [(case.title, case.batch) for case in plan.cases(2)] == [
        ("pp512", 1),
        ("pp512 @ d100", 1),
        ("tg128", 1),
        ("tg128", 8),
        ("tg128 @ d100", 1),
        ("tg128 @ d100", 8),
    ]
    assert {case.threads for case in plan.cases(2)} == {2}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threads": (0,)}, "threads: 0"),
        ({"batches": (1, 0)}, "batch: 0"),
        ({"repetitions": 0}, "repetitions: 0"),
        ({"prompts": (-1,)}, "prompt tokens: -1"),
        ({"prompts": (0,), "generations": (0,)}, "nothing to measure"),
    ],
)
def test_impossible_plans(wrong, message):
    with pytest.raises(InputError, match=message):
        Plan(**wrong)


def test_context_must_hold_depth_and_tokens():
    Plan(prompts=(24,), generations=(8,), depths=(8,)).check_context(32)
    with pytest.raises(InputError, match=r"pp24 @ d9 needs a context of 33 tokens; the model's is 32"):
        Plan(prompts=(24,), generations=(8,), depths=(9,)).check_context(32)


@pytest.mark.parametrize(
    ("case", "passes"),
    [
        (Case("pp", 5, 1, depth=3), [[5]]),
        (Case("tg", 3, 1), [[1], [1], [1]]),
        (Case("tg", 2, 1, batch=3, depth=4), [[1, 1, 1], [1, 1, 1]]),
    ],
)
def test_what_is_timed(golden, monkeypatch, case, passes):
    """Each run feeds the case's tokens, from its depth, with the same ids every time."""
    model = load_model(golden / "packed_offline", threads=1)
    runner = EngineRunner(model)
    runner.prepare(case)
    seen = []
    forward = model.forward

    def watched(batch, all_logits=False):
        assert all_logits is False
        seen.append([(cache.length, list(ids)) for cache, ids in batch])
        return forward(batch)

    monkeypatch.setattr(model, "forward", watched)
    assert runner.run() > 0
    first, seen[:] = list(seen), []
    assert runner.run() > 0
    assert first == seen
    assert [[len(ids) for _, ids in step] for step in seen] == passes
    position = case.depth
    for step in seen:
        for sequence, (length, ids) in enumerate(step):
            expected = fixed_ids(model.config.vocab_size, case.depth + case.tokens, sequence)
            assert length == position
            assert ids == expected[position : position + len(ids)]
        position += len(step[0][1])


def test_ids_differ_by_sequence_only():
    assert fixed_ids(512, 20) == fixed_ids(512, 20)
    assert fixed_ids(512, 20)[:10] == fixed_ids(512, 10)
    assert fixed_ids(512, 20, 1) != fixed_ids(512, 20)
    assert all(0 <= token < 512 for token in fixed_ids(512, 200))
