"""`bitnet tokenizer train` and `bitnet prepare`, one after the other, and their refusals."""

import pytest

from bitnet.train.shards import Corpus


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "story.txt"
    tales = [f"Tale {number}. The cat sat on the mat." for number in range(90)]
    path.write_text("\n<|endoftext|>\n".join(["", *tales, "", "End."]), encoding="utf-8")
    return path


@pytest.fixture
def tokenizer(bitnet, text, tmp_path):
    result = bitnet("tokenizer", "train", text, "--vocab-size", 270, "--out", tmp_path / "tokenizer")
    assert result.code == 0, result.err
    assert "270 entries from 92 documents" in result.out
    return tmp_path / "tokenizer"


def test_text_becomes_a_tokenizer_and_shards(bitnet, text, tokenizer, tmp_path):
    out = tmp_path / "prepared"
    options = ("--tokenizer", tokenizer, "--out", out, "--validation", 0.2, "--shard-tokens", 300)
    result = bitnet("prepare", text, *options)
    assert result.code == 0, result.err
    train, validation = Corpus.open(out), Corpus.open(out, "validation")
    assert train.documents + validation.documents == 91
    assert f"train: {train.documents} documents, {len(train):,} tokens" in result.out
    assert "1 empty documents left out" in result.out
    assert "exists already" in bitnet("prepare", text, *options).refusal


def test_an_existing_tokenizer_is_left_alone(bitnet, text, tokenizer):
    before = (tokenizer / "tokenizer.json").read_bytes()
    again = bitnet("tokenizer", "train", text, "--vocab-size", 265, "--out", tokenizer)
    assert "already" in again.refusal
    assert (tokenizer / "tokenizer.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("prepare", "{dir}/none.txt", "--tokenizer", "{dir}/tokenizer", "--out", "{dir}/o"), "none.txt"),
        (("prepare", "{dir}/story.txt", "--tokenizer", "{dir}/story.txt", "--out", "{dir}/o"), "tokenizer"),
        (("prepare", "{dir}/b.jsonl", "--tokenizer", "{dir}/tokenizer", "--out", "{dir}/o"), "line 2"),
        (("tokenizer", "train", "{dir}/b.jsonl", "--vocab-size", "270", "--out", "{dir}/o"), "line 2"),
        (("tokenizer", "train", "{dir}/story.txt", "--vocab-size", "9", "--out", "{dir}/o"), "vocab_size"),
    ],
)
def test_bad_input_is_one_line(bitnet, tokenizer, tmp_path, arguments, reason):
    (tmp_path / "b.jsonl").write_text('{"text": "a"}\n{"text": 1}\n')
    assert reason in bitnet(*(argument.format(dir=tmp_path) for argument in arguments)).refusal
    assert not (tmp_path / "o").exists()


def test_the_group_lists_its_verbs(bitnet):
    assert "train" in bitnet("tokenizer", "--help").out
