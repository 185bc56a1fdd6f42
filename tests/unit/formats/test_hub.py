from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors

from bitnet.errors import FormatError, ResourceError
from bitnet.formats.hub import resolve

ID = "microsoft/bitnet-b1.58-2B-4T"


@pytest.fixture
def download(monkeypatch):
    """Replaces the download by one that returns or raises what the test says; records its arguments."""
    calls = []

    def install(outcome):
        def snapshot_download(repository, **options):
            calls.append((repository, options))
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        return calls

    return install


def hub_error(kind):
    """These carry an HTTP response that no test here has: made without their constructor."""
    error = kind.__new__(kind)
    error.args = ("refused",)
    return error


def test_a_folder_is_itself(tmp_path, download):
    calls = download("/never")
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path
    assert calls == []


def test_a_folder_named_like_a_repository_wins(tmp_path, monkeypatch, download):
    calls = download("/never")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert resolve("owner/name") == Path("owner/name")
    assert calls == []


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert resolve("~/model") == tmp_path / "model"


def test_only_what_a_model_needs_is_downloaded(download):
    calls = download("/cache/snapshot")
    assert resolve(ID) == Path("/cache/snapshot")
    ((repository, options),) = calls
    assert repository == ID
    wanted = options["allow_patterns"]
    from huggingface_hub.utils import filter_repo_objects

    published = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ]
    unwanted = [
        "ggml-model-i2_s.gguf",
        "pytorch_model.bin",
        "modeling_bitnet.py",
        "README.md",
        "consolidated.safetensors",
    ]
    assert list(filter_repo_objects(published + unwanted, allow_patterns=wanted)) == published


@pytest.mark.parametrize(
    "name", ["nowhere", "./no/where", "/no/where", "a/b/c", "", "no\\where", "a/b\0", "x" * 5000]
)
def test_what_is_no_repository_id_is_never_looked_up(name, download):
    calls = download("/never")
    with pytest.raises(FormatError, match=r"not found|cannot be opened|name is empty"):
        resolve(name)
    assert calls == []


def test_a_path_is_never_looked_up(download):
    calls = download("/never")
    with pytest.raises(FormatError, match="not found"):
        resolve(Path("owner/name"))
    assert calls == []


def test_unknown_home():
    with pytest.raises(FormatError, match="cannot be opened"):
        resolve("~nobody-of-that-name/model")


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FormatError, match="is a file; name the folder"):
        resolve(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (hub_error(hub_errors.GatedRepoError), "access is restricted"),
        (hub_error(hub_errors.RepositoryNotFoundError), "neither a local folder nor a public repository"),
        (hub_errors.LocalEntryNotFoundError("offline"), "the Hub is not reachable"),
        (OSError(28, "No space left on device"), "no disk space left"),
        (
            PermissionError(13, "Permission denied", "/cache/hub"),
            r"the cache at /cache/hub is not usable \(Perm",
        ),
        (ConnectionError("reset\nby peer"), r"the download failed \(reset\)"),
        (RuntimeError(""), r"the download failed \(RuntimeError\)"),
    ],
)
def test_failures_are_one_clear_line(download, error, message):
    download(error)
    with pytest.raises(ResourceError, match=message) as caught:
        resolve(ID)
    assert str(caught.value).startswith(ID)
    assert "\n" not in str(caught.value)


def test_offline_with_an_empty_cache(tmp_path, monkeypatch):
    """The real library: HF_HUB_OFFLINE forbids the network, the cache has nothing."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ResourceError, match="HF_HUB_OFFLINE"):
        resolve(ID)
