"""load_model picks the engine and checks what it is given; the engines themselves stand in as recorders."""

import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tokenizers

from bitnet import load
from bitnet.errors import ConfigError, FormatError, InputError, ResourceError

PACKED = Path(__file__).parents[1] / "golden" / "packed_offline"


@pytest.fixture
def engines(monkeypatch):
    """Replaces both engine modules; a loaded model is then (engine, checkpoint, tokenizer, options)."""
    for module, name in (("bitnet.cpu_model", "CpuModel"), ("bitnet.torch_model", "TorchModel")):
        fake = ModuleType(module)

        class Recorder:
            @classmethod
            def from_checkpoint(cls, checkpoint, tokenizer, _name=name, **options):
                return _name, checkpoint, tokenizer, options

        setattr(fake, name, Recorder)
        monkeypatch.setitem(sys.modules, module, fake)


@pytest.fixture
def with_tokenizer(tmp_path):
    def make(size):
        folder = shutil.copytree(PACKED, tmp_path / "model")
        vocabulary = {f"w{i}": i for i in range(size)}
        core = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="w0"))
        core.decoder = tokenizers.decoders.ByteLevel()
        core.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel()
        core.save(str(folder / "tokenizer.json"))
        return folder

    return make


def test_cpu_is_the_default(engines):
    name, checkpoint, tokenizer, options = load.load_model(PACKED)
    assert name == "CpuModel"
    assert checkpoint.config.hidden_size == 256
    assert tokenizer is None
    assert options == {"threads": None, "kv_dtype": "auto", "head": "auto", "isa": None}


def test_options_reach_the_cpu_engine(engines):
    *_, options = load.load_model(str(PACKED), threads=3, kv_dtype="float32", isa="scalar")
    assert options == {"threads": 3, "kv_dtype": "float32", "head": "auto", "isa": "scalar"}


def test_torch(engines):
    name, *_, options = load.load_model(PACKED, engine="torch", threads=2)
    assert name == "TorchModel"
    assert options == {"threads": 2}


def test_cpu_options_are_not_dropped_by_torch(engines):
    with pytest.raises(InputError, match="isa, kv_dtype and head are options of the 'cpu' engine"):
        load.load_model(PACKED, engine="torch", isa="scalar")


def test_unknown_engine(engines):
    with pytest.raises(InputError, match="engine is 'gpu'; known are 'cpu' and 'torch'"):
        load.load_model("/nowhere", engine="gpu")


@pytest.mark.parametrize("threads", [0, -1])
def test_threads(engines, threads):
    with pytest.raises(InputError, match=f"threads is {threads}"):
        load.load_model(PACKED, threads=threads)


def test_a_vocabulary_may_be_padded(engines, with_tokenizer):
    _, _, tokenizer, _ = load.load_model(with_tokenizer(512))
    assert tokenizer.vocab_size == 512


def test_a_vocabulary_that_does_not_fit(engines, with_tokenizer):
    with pytest.raises(
        ConfigError, match=r"the tokenizer has 513 tokens, but vocab_size in config\.json is 512"
    ):
        load.load_model(with_tokenizer(513))


def test_embedded_model_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(load.resources, "files", lambda _: tmp_path)
    with pytest.raises(FormatError, match="the embedded model is missing"):
        load.load_model()


def test_embedded_model(tmp_path, monkeypatch, engines):
    shutil.copytree(PACKED, tmp_path / "assets" / "stories")
    monkeypatch.setattr(load.resources, "files", lambda _: tmp_path)
    _, checkpoint, *_ = load.load_model()
    assert checkpoint.directory == tmp_path / "assets" / "stories"


@pytest.mark.parametrize("engine", ["cpu", "torch"])
def test_an_engine_that_is_not_installed(monkeypatch, engine):
    monkeypatch.setitem(sys.modules, f"bitnet.{engine}_model", None)
    with pytest.raises(ResourceError, match=rf"the {engine} engine is not installed.*setup\.sh"):
        load.load_model(engine=engine)
