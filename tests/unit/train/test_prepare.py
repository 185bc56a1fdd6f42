"""Documents to ids and to folders, and what a run accepts as a source."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from bitnet.errors import FormatError, InputError, UnsupportedError
from bitnet.train import encoding
from bitnet.train.encoding import Encoder, in_batches
from bitnet.train.prepare import prepare
from bitnet.train.shards import Corpus, Manifest
from bitnet.train.sources import open_source
from bitnet.train.tokenizer import learn_tokenizer, save_tokenizer

CHAT = [{"role": "user", "content": "Hi<turn>"}, {"role": "assistant", "content": "Yo"}]
TEMPLATE = "{% for m in messages %}{{ bos_token }}{{ m.content }}<turn>{% endfor %}"


@pytest.fixture
def texts():
    return [f"Tale {number}: the cat sat on the mat {number * 7} times." for number in range(400)]


@pytest.fixture
def text_file(tmp_path, texts):
    path = tmp_path / "t.txt"
    path.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    return path


@pytest.fixture
def folder(tmp_path, tokenizer):
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def chat_folder(tmp_path):
    """A byte tokenizer with `<turn>` and a foreign template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={char: place for place, char in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    names = ("<|endoftext|>", "<turn>")
    core.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    save_tokenizer(core, tmp_path / "chat")
    (tmp_path / "chat" / "chat_template.jinja").write_text(TEMPLATE)
    return tmp_path / "chat"


def decoded(corpus, tokenizer):
    """The documents as text, by their starts."""
    ids = corpus.take(0, len(corpus))
    pieces = np.split(ids, corpus.document_starts()[1:])
    assert all(piece[0] == 0 for piece in pieces)
    return [tokenizer.decode(piece[1:].tolist()) for piece in pieces]


def test_a_separator_that_is_spelled_out_is_text(tokenizer):
    (ids,) = Encoder(tokenizer).encode(["a<|endoftext|>b"])
    assert (ids == 0).tolist() == [True] + [False] * (len(ids) - 1)
    assert tokenizer.decode(ids[1:].tolist()) == "a<|endoftext|>b"


def test_limits_of_a_published_file_are_not_kept(tokenizer):
    limited = Tokenizer.from_str(tokenizer.to_str())
    limited.enable_truncation(5)
    limited.enable_padding(length=50)
    texts = ["the cat sat on the mat " * 9, "a"]
    for mine, theirs in zip(Encoder(limited).encode(texts), Encoder(tokenizer).encode(texts), strict=True):
        assert mine.tolist() == theirs.tolist()


def test_conversations_go_through_the_template(chat_folder):
    core = Tokenizer.from_file(str(chat_folder / "tokenizer.json"))
    end, turn = (core.token_to_id(name) for name in ("<|endoftext|>", "<turn>"))
    ids = Encoder(core, chat_folder).encode(["x", CHAT, "y"])
    assert [len(row) for row in ids] == [2, 14, 2]
    assert np.flatnonzero(ids[1] == end).tolist() == [0, 10]  # the template's first is the separator
    assert np.flatnonzero(ids[1] == turn).tolist() == [9, 13]  # the user's is text
    assert core.decode(ids[1].tolist(), skip_special_tokens=True) == "Hi<turn>Yo"


def test_a_pair_of_separators_ends_one_document_and_begins_the_next(chat_folder, tmp_path):
    core = Tokenizer.from_file(str(chat_folder / "tokenizer.json"))
    core = Tokenizer.from_str(core.to_str().replace("<|endoftext|>", "<|end_of_text|>"))
    core.add_special_tokens([AddedToken("<|begin_of_text|>", special=True)])
    end, begin = (core.token_to_id(f"<|{name}_of_text|>") for name in ("end", "begin"))
    save_tokenizer(core, tmp_path / "pair")
    (tmp_path / "pair" / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in "xy"))
    prepare([str(tmp_path / "t.jsonl")], tmp_path / "pair", tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    x, y = (core.token_to_id(text) for text in "xy")
    assert corpus.take(0, 6).tolist() == [end, begin, x, end, begin, y]
    assert corpus.document_starts().tolist() == [0, 3]
    (chat,) = Encoder(core, tmp_path / "pair").encode([CHAT])
    assert chat[:2].tolist() == [end, begin]
    assert (chat == begin).sum() == 2  # the template's first is the separator's second


def test_conversations_need_a_template(tokenizer, chat_folder):
    with pytest.raises(InputError, match=r"begins 'Hi<turn>'.*no chat template"):
        Encoder(tokenizer).encode([CHAT])
    (chat_folder / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    core = Tokenizer.from_file(str(chat_folder / "tokenizer.json"))
    with pytest.raises(InputError, match="refuses the messages: no"):
        Encoder(core, chat_folder).encode([CHAT])


def test_a_template_without_a_folder_gives_the_same_ids(chat_folder):
    core = Tokenizer.from_file(str(chat_folder / "tokenizer.json"))
    (expected,) = Encoder(core, chat_folder).encode([CHAT])
    (found,) = Encoder(core, chat_template=TEMPLATE).encode([CHAT])
    assert found.tolist() == expected.tolist()


def test_the_current_folder_by_its_dot_is_refused(text_file, folder, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InputError, match="choose another folder"):
        prepare([str(text_file)], folder, type(tmp_path)("."))


def test_batches_hold_every_document_and_little_text(monkeypatch):
    monkeypatch.setattr(encoding, "_MOST_CHARACTERS", 10)
    monkeypatch.setattr(encoding, "_MOST_DOCUMENTS", 3)
    documents = ["a" * size for size in (1, 1, 1, 1, 9, 30, 1, 1)]
    assert list(map(len, in_batches(documents))) == [3, 2, 1, 2]
    assert [document for batch in in_batches(documents) for document in batch] == documents


def test_a_prepared_folder_holds_every_document_once(tmp_path, text_file, texts, folder, tokenizer):
    seen = []
    summary = prepare(
        [str(text_file)], folder, tmp_path / "out", 0.1, 2000, 3, lambda s: seen.append((s.read, s.empty))
    )
    assert seen[-1] == (text_file.stat().st_size, 0)
    parts = {split: decoded(Corpus.open(tmp_path / "out", split), tokenizer) for split in summary.splits}
    assert sorted(parts["train"] + parts["validation"]) == sorted(texts)
    assert 15 <= len(parts["validation"]) <= 70
    assert parts["train"] == [text for text in texts if text in set(parts["train"])]
    for split, counts in summary.splits.items():
        corpus = Corpus.open(tmp_path / "out", split)
        assert (counts.documents, counts.tokens) == (corpus.documents, len(corpus))
        assert counts.text_bytes == corpus.text_bytes == sum(len(text.encode()) for text in parts[split])
    assert len(Manifest.read(tmp_path / "out").splits["train"]) > 3
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()


def test_validation_depends_on_neither_order_nor_files(tmp_path, texts, folder, tokenizer):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[200:]))
    pq.write_table(pa.table({"text": texts[:200][::-1]}), tmp_path / "b.parquet")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress("\n<|endoftext|>\n".join(texts).encode()))
    chosen = []
    for number, inputs in enumerate((["a.jsonl", "b.parquet"], ["c.txt.gz"], ["c.txt.gz", "a.jsonl"])):
        out = tmp_path / str(number)
        summary = prepare([str(tmp_path / name) for name in inputs], folder, out, 0.2, seed=1)
        chosen.append(set(decoded(Corpus.open(out, "validation"), tokenizer)))
    assert chosen[0] == chosen[1] == chosen[2]
    assert summary.splits["validation"].documents > len(chosen[2])  # copies fall on one side
    prepare([str(tmp_path / "c.txt.gz")], folder, tmp_path / "other", 0.2, seed=2)
    assert set(decoded(Corpus.open(tmp_path / "other", "validation"), tokenizer)) != chosen[0]


def test_empty_documents_are_counted_and_left_out(tmp_path, folder):
    path = tmp_path / "t.jsonl"
    rows = [{"text": ""}, {"text": "a"}, {"text": ""}]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    summary = prepare([str(path)], folder, tmp_path / "out")
    assert (summary.empty, summary.splits["train"].documents) == (2, 1)
    assert open_source(path, Tokenizer.from_file(str(folder / "tokenizer.json"))).documents == 1


def test_conversations_are_prepared(tmp_path, chat_folder):
    path = tmp_path / "c.jsonl"
    path.write_text((json.dumps({"messages": CHAT}) + "\n") * 3)
    prepare([str(path)], chat_folder / "tokenizer.json", tmp_path / "out")
    corpus = Corpus.open(tmp_path / "out")
    assert (len(corpus), corpus.documents, corpus.text_bytes) == (42, 3, 30)


@pytest.mark.parametrize(
    ("content", "options", "error", "reason"),
    [
        ("", {}, FormatError, "holds no text"),
        ("a", {"validation": 0.5}, InputError, "fell into"),
        ("a", {"validation": 1.0}, InputError, "validation is 1"),
        ("a", {"validation": float("nan")}, InputError, "validation is nan"),
        ("a", {"shard_tokens": 0}, InputError, "shard_tokens is 0"),
    ],
)
def test_what_cannot_be_prepared_leaves_nothing(tmp_path, folder, content, options, error, reason):
    path = tmp_path / "t.txt"
    path.write_text(content)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(error, match=reason):
        prepare([str(path)], folder, tmp_path / "out", **options)
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_names_are_found_before_any_work(tmp_path, folder, text_file):
    for name, error in ((tmp_path / "missing.txt", FormatError), (tmp_path / "t.zst", UnsupportedError)):
        (tmp_path / "t.zst").write_bytes(b"")
        with pytest.raises(error, match=name.name):
            prepare([str(text_file), str(name)], folder, tmp_path / "out", progress=pytest.fail)
    with pytest.raises(FormatError, match="nowhere"):
        prepare([str(text_file)], tmp_path / "nowhere", tmp_path / "out")


def test_a_file_and_its_folder_are_the_same_corpus(tmp_path, text_file, folder, tokenizer):
    prepare([str(text_file)], folder, tmp_path / "out", shard_tokens=1000)
    mapped, read = open_source(tmp_path / "out", tokenizer), open_source(text_file, tokenizer)
    assert mapped.take(0, len(mapped)).tolist() == read.take(0, len(read)).tolist()
    assert mapped.document_starts().tolist() == read.document_starts().tolist()
    assert (mapped.text_bytes, mapped.separator) == (read.text_bytes, read.separator)


def test_a_folder_of_another_tokenizer_is_refused(tmp_path, text_file, texts, folder, tokenizer):
    prepare([str(text_file)], folder, tmp_path / "out", 0.2)
    other = learn_tokenizer(texts, 280)
    with pytest.raises(InputError, match="another tokenizer"):
        open_source(tmp_path / "out", other)
    (tmp_path / "out" / "tokenizer.json").write_text(other.to_str())
    with pytest.raises(FormatError, match=r"tokenizer\.json: is damaged"):
        open_source(tmp_path / "out", tokenizer)


def test_what_is_no_source_is_refused(tmp_path, tokenizer):
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "folder").mkdir()
    for name, error, reason in (
        ("empty.txt", FormatError, "no text"),
        ("missing.txt", FormatError, "missing.txt"),
        ("folder", FormatError, "manifest"),
    ):
        with pytest.raises(error, match=reason):
            open_source(tmp_path / name, tokenizer)
    with pytest.raises(InputError, match="prepare"):
        open_source(type(tmp_path)("hf:name"), tokenizer)
