"""The program in this process, and small models for it: one that talks, one that takes ids only."""

import io
import json
import shutil
import sys

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from bitnet.cli.main import run
from bitnet.config import ModelConfig
from bitnet.formats.synthesize import synthesize

CONFIG = ModelConfig(
    vocab_size=260,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=60000,
    bos_token_id=0,
)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}<turn>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


class Input(io.TextIOWrapper):
    terminal = False

    def isatty(self):
        return self.terminal


class Outcome:
    """What a call of the program left behind."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    @property
    def refusal(self):
        """The one line with which it refused the user's input."""
        assert self.code == 2, (self.code, self.out, self.err)
        assert self.out == ""
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("error: ")
        return lines[0]


@pytest.fixture
def bitnet(capsys, monkeypatch):
    """`bitnet("info", folder, stdin=b"…")` runs the program as a shell would, with a pipe for input."""

    def call(*arguments, stdin=b"", terminal=False):
        pipe = Input(io.BytesIO(stdin), encoding="utf-8")
        pipe.terminal = terminal
        monkeypatch.setattr(sys, "stdin", pipe)
        with pytest.raises(SystemExit) as end:
            run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Outcome(end.value.code or 0, out, err)

    return call


@pytest.fixture(scope="session")
def ids_model(tmp_path_factory):
    """A packed checkpoint of random weights without a tokenizer; nothing ends its answers."""
    folder = tmp_path_factory.mktemp("models") / "ids"
    synthesize(CONFIG, folder, seed=3)
    return folder


def add_tokenizer(folder, chat_template=None):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: 2 + place for place, char in enumerate(alphabet)} | {"<bos>": 0, "<turn>": 1}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in ("<bos>", "<turn>")]
    )
    core.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<bos>"} | ({"chat_template": chat_template} if chat_template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.fixture(scope="session")
def text_model(ids_model, tmp_path_factory):
    """The same with a byte tokenizer: it continues text, but has no chat template."""
    folder = tmp_path_factory.mktemp("models") / "text"
    shutil.copytree(ids_model, folder)
    add_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def chat_model(ids_model, tmp_path_factory):
    """The same with a chat template."""
    folder = tmp_path_factory.mktemp("models") / "chat"
    shutil.copytree(ids_model, folder)
    add_tokenizer(folder, TEMPLATE)
    return folder


@pytest.fixture
def broken(ids_model, tmp_path):
    """A copy of `ids_model` to be damaged."""
    folder = tmp_path / "broken"
    shutil.copytree(ids_model, folder)
    return folder
