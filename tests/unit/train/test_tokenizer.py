"""The byte-level vocabulary a run trains for itself, and those that others bring."""

import json

import pytest
import tokenizers
from tokenizers import AddedToken, models

from bitnet.errors import FormatError, InputError, ResourceError
from bitnet.tokenizer import Tokenizer
from bitnet.train.config import DataSource
from bitnet.train.tokenizer import (
    fingerprint,
    id_bound,
    learn_tokenizer,
    load_tokenizer,
    save_tokenizer,
    separator_id,
    separator_ids,
    train_tokenizer,
)


def foreign(*names):
    core = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "hole": 9}, merges=[]))
    core.add_special_tokens([AddedToken(name, special=True) for name in names])
    return core


def test_the_separator_is_id_0_and_any_text_survives(tokenizer):
    assert tokenizer.get_vocab_size() == id_bound(tokenizer) == 280
    assert separator_ids(tokenizer) == (0,)
    text = "Ünïcode 🐢\tand  spaces\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_saved_folder_is_one_the_library_reads(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path, 64)
    read = Tokenizer.from_directory(tmp_path)
    assert read.bos_token_id == 0
    assert read.encode("The cat") == [0, *tokenizer.encode("The cat", add_special_tokens=False).ids]
    assert load_tokenizer(tmp_path).get_vocab() == load_tokenizer(tmp_path / "tokenizer.json").get_vocab()
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["model_max_length"] == 64


def test_a_folder_that_cannot_be_written_is_one_error(tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="file"):
        save_tokenizer(tokenizer, tmp_path / "file")


def test_pieces_are_cut_as_asked():
    text = ["12345 12345 cats\n\ncats\n\n"] * 50
    for split, size, expected in (
        ("gpt2", 267, ["12345", "Ġcats", "ĊĊ"]),
        ("llama3", 265, ["123", "45", "Ġcats", "ĊĊ"]),
    ):
        learned = learn_tokenizer(text, size, split)
        assert learned.encode("12345 cats\n\n", add_special_tokens=False).tokens == expected
        assert learned.decode(learned.encode(" 12345 ü\r\n").ids) == " 12345 ü\r\n"


def test_sources_count_by_their_passes(tmp_path):
    for name in "xy":
        (tmp_path / f"{name}.txt").write_text(f"{name * 3} {name * 3}\n<|endoftext|>\n" * 400)
    sources = [DataSource(str(tmp_path / "x.txt"), 0.01), DataSource(str(tmp_path / "y.txt"), 2)]
    vocab = train_tokenizer(sources, 260, seed=0).get_vocab()
    assert "yyy" in vocab
    assert "xx" not in vocab


def test_conversations_are_text_to_learn_from(tmp_path):
    row = {"messages": [{"role": "user", "content": "zzz zzz"}]}
    (tmp_path / "c.jsonl").write_text((json.dumps(row) + "\n") * 50)
    assert "zzz" in train_tokenizer([DataSource(str(tmp_path / "c.jsonl"))], 259, seed=0).get_vocab()


def test_impossible_vocabularies_are_refused(story_file):
    for size in (256, 100_000):
        with pytest.raises(InputError, match=r"vocab_size|vocabulary"):
            train_tokenizer([DataSource(str(story_file))], size, seed=0)


def test_separators_of_other_families_are_known(tmp_path):
    llama3 = foreign("<|begin_of_text|>", "<|end_of_text|>")
    assert separator_ids(llama3) == (4, 3)
    assert separator_id(llama3) == 4
    assert id_bound(llama3) == 10  # ids have holes
    assert separator_ids(foreign("<s>", "</s>")) == (4, 3)
    save_tokenizer(llama3, tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"]) == ("<|begin_of_text|>", "<|end_of_text|>")
    assert Tokenizer.from_directory(tmp_path).bos_token_id == 3
    with pytest.raises(InputError, match="separates documents"):
        separator_ids(foreign("<s>"))


def test_fingerprints_tell_tokenizers_apart_and_not_their_files(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    read = load_tokenizer(tmp_path)
    read.enable_truncation(5)
    read.enable_padding(length=9)
    assert fingerprint(read) == fingerprint(tokenizer)
    read.add_special_tokens(["<|x|>"])
    assert fingerprint(read) != fingerprint(tokenizer)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        load_tokenizer(path)
    foreign("<s>").save(str(path))
    with pytest.raises(FormatError, match=r"tokenizer\.json.*separates documents"):
        load_tokenizer(path)
