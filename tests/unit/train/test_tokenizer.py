"""The byte-level vocabulary a run trains for itself."""

import pytest

from bitnet.errors import FormatError, InputError
from bitnet.tokenizer import Tokenizer
from bitnet.train.config import DataSource
from bitnet.train.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer


def test_the_separator_is_id_0_and_any_text_survives(tokenizer):
    assert tokenizer.get_vocab_size() == 280
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    text = "Ünïcode 🐢\tand  spaces\n"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_the_saved_folder_is_one_the_library_reads(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path, 64)
    read = Tokenizer.from_directory(tmp_path)
    assert read.bos_token_id == 0
    assert read.encode("The cat") == [0, *tokenizer.encode("The cat", add_special_tokens=False).ids]
    assert load_tokenizer(tmp_path).get_vocab() == load_tokenizer(tmp_path / "tokenizer.json").get_vocab()


def test_impossible_vocabularies_are_refused(story_file):
    for size in (256, 100_000):
        with pytest.raises(InputError, match=r"vocab_size|vocabulary"):
            train_tokenizer([DataSource(str(story_file))], size, seed=0)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        load_tokenizer(path)
