"""Windows against what the harness documents, sums against a plain loop in PyTorch."""

import json
import math

import pytest

from bitnet.errors import FormatError, InputError
from bitnet.evaluate.perplexity import (
    DocumentScore,
    PerplexityResult,
    measure_perplexity,
    read_documents,
    rolling_windows,
)
from bitnet.load import load_model

TALE = (
    "Once upon a time, there was a little girl named Lily. She liked to play with her big red ball. One day, "
    "the ball rolled into the garden of an old man, and he laughed. She asked him for it. He said that it "
    "was a very good ball, and gave it back to her."
)


def test_windows_of_the_harness_documentation():
    assert list(rolling_windows(range(10), -1, 4)) == [
        ([-1], [0, 1, 2, 3]),
        ([3], [4, 5, 6, 7]),
        ([5, 6, 7], [8, 9]),
    ]


@pytest.mark.parametrize("count", range(1, 20))
@pytest.mark.parametrize("length", [1, 2, 5, 19])
def test_every_id_is_predicted_once_with_as_much_before_it_as_fits(count, length):
    windows = list(rolling_windows(range(count), -1, length))
    assert [token for _, new in windows for token in new] == list(range(count))
    for number, (context, new) in enumerate(windows):
        assert [*context, *new] == list(range(context[0], new[-1] + 1))
        assert len(context) + len(new) == min(count, length) + 1
        assert (context[0] == -1) == (number == 0)


def torch_loop(torch, logits_of, ids, context):
    """Nats of `ids` behind id 0, window by window, with PyTorch's own cross-entropy."""
    nats = 0.0
    for start in range(0, len(ids), context):
        end = min(start + context, len(ids))
        first = end - context if start and end > context else 0
        logits, targets = logits_of([0, *ids][first:end]), torch.tensor(ids[first:end])
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        nats += loss[start - first :].double().sum().item()
    return nats


def test_rolling_windows_are_those_of_a_plain_torch_loop(stories):
    torch = pytest.importorskip("torch")

    def run(ids):
        (logits,) = stories.forward([(stories.new_cache(len(ids)), ids)], all_logits=True)
        return torch.from_numpy(logits)

    ids = stories.tokenizer.encode(TALE * 9, add_bos=False)
    assert len(ids) % 512
    nats = torch_loop(torch, run, ids, 512)
    found = measure_perplexity(stories, [TALE * 9])
    assert found.tokens == len(ids) > 512
    assert found.token_perplexity == pytest.approx(math.exp(nats / len(ids)), rel=1e-6)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / len(TALE * 9), rel=1e-6)


def test_perplexity_is_that_of_the_torch_model(stories):
    """One sentence: a longer text would meet an activation code so near a tie that float rounding flips it,
    and there two correct engines differ."""
    torch = pytest.importorskip("torch")
    reference = load_model(engine="torch")

    def run(ids):
        with torch.inference_mode():
            return reference.transformer(torch.tensor([ids]))[0]

    sentence = "Once upon a time, there was a little girl named Lily."
    ids = stories.tokenizer.encode(sentence, add_bos=False)
    perplexity = math.exp(torch_loop(torch, run, ids, 512) / len(ids))
    for model in (reference, load_model(threads=1, kv_dtype="float32")):
        assert measure_perplexity(model, [sentence]).token_perplexity == pytest.approx(perplexity, rel=1e-4)


def test_each_document_stands_alone(stories):
    texts = [TALE, "The end.", "Ein Bär 🐻"]
    together = measure_perplexity(stories, texts)
    assert together.documents == tuple(measure_perplexity(stories, [text]).documents[0] for text in texts)
    assert together.documents[2].bytes == 13
    assert together.documents[2].words == 3


def test_numbers_by_hand():
    found = PerplexityResult((DocumentScore(math.log(16), 2, 1, 4), DocumentScore(math.log(4), 4, 3, 8)))
    assert found.token_perplexity == pytest.approx(2)
    assert found.word_perplexity == pytest.approx(64 ** (1 / 4))
    assert found.byte_perplexity == pytest.approx(math.sqrt(2))
    assert found.bits_per_byte == pytest.approx(0.5)
    # b - R s = 4 - 2 and 2 - 4; √(2 / 1 · 8) / 12
    assert found.bits_per_byte_stderr == pytest.approx(4 / 12)
    assert PerplexityResult(found.documents[:1]).bits_per_byte_stderr is None
    assert PerplexityResult((DocumentScore(1e6, 1, 1, 1),)).token_perplexity == math.inf


def test_documents_of_a_text(tmp_path):
    path = tmp_path / "f.txt"
    path.write_text("<|endoftext|>\none\n two\n<|endoftext|> \nthree <|endoftext|>\n\n<|endoftext|>\n\n")
    assert read_documents(path) == ["one\n two\n", "three <|endoftext|>\n\n"]
    assert read_documents(path, 1) == ["one\n two\n"]


@pytest.mark.parametrize("name", ["f.jsonl", "f.ndjson"])
def test_documents_of_json_lines(tmp_path, name):
    path = tmp_path / name
    path.write_text("\n".join(json.dumps({"text": text}) for text in ("a\nb", "", "c")))
    assert read_documents(path) == ["a\nb", "c"]


def test_documents_that_are_none(tmp_path, ids_model):
    (tmp_path / "f.txt").write_text(" \n<|endoftext|>\n\n")
    with pytest.raises(FormatError, match=r"f\.txt: holds no text"):
        read_documents(tmp_path / "f.txt")
    (tmp_path / "f.jsonl").write_text('{"text": "a"}\n{"texts": "b"}')
    with pytest.raises(FormatError, match=r"f\.jsonl: line 2: text is missing"):
        read_documents(tmp_path / "f.jsonl")
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        measure_perplexity(ids_model, ["a"])


def test_an_empty_document(stories):
    with pytest.raises(InputError, match="document 1 is empty"):
        measure_perplexity(stories, ["a", ""])
