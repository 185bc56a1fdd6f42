"""Where a model's files are: a local folder, a GGUF file, or a Hub repository that huggingface_hub fetches
into its cache.

The library itself honours HF_HOME, HF_HUB_OFFLINE and HF_TOKEN and shows the progress bar.
"""

from __future__ import annotations

import errno
import re
from pathlib import Path

from bitnet.errors import FormatError, ResourceError

# what running a model needs; a repository may also hold other formats many times that size
_FILES = [
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
]
_REPOSITORY_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve(path_or_id: str | Path) -> Path:
    """The folder or the GGUF file that holds a model: itself if it is there, else the downloaded repository.

    Raises:
        FormatError: neither a folder, nor a GGUF file, nor the form of a Hub id.
        ResourceError: the repository cannot be had: unknown, gated, no network, no disk, cache not readable.
    """
    from bitnet.formats.gguf.container import is_gguf  # whose package imports this module

    if path_or_id == "":  # as a path it would mean the current folder
        raise FormatError("the model's name is empty; name a local folder or a Hub id of the form owner/name")
    try:
        path = Path(path_or_id).expanduser()
        if path.is_dir():
            return path
        is_file = path.is_file()
    except (
        OSError,
        RuntimeError,
    ) as error:  # a name too long, a parent that is closed to us, an unknown ~user
        raise FormatError(
            f"{path_or_id}: cannot be opened ({getattr(error, 'strerror', None) or error})"
        ) from None
    if is_file:
        if is_gguf(path):
            return path
        raise FormatError(
            f"{path}: is a file; name the folder that holds config.json and the weights, or a GGUF file"
        )
    if isinstance(path_or_id, Path) or not _REPOSITORY_ID.fullmatch(path_or_id):
        raise FormatError(
            f"{path_or_id}: not found; name a local folder, a GGUF file, or a Hub id of the form owner/name"
        )
    return _download(path_or_id)


def _download(repository: str) -> Path:
    # imported here: it takes longer than opening a local model
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repository, allow_patterns=_FILES))
    except GatedRepoError:
        raise ResourceError(
            f"{repository}: access is restricted; accept its terms on its page, then log in with "
            "`hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ResourceError(
            f"{repository}: neither a local folder nor a public repository of the Hub; check the spelling, "
            "or log in with `hf auth login` if it is private"
        ) from None
    except LocalEntryNotFoundError:
        raise ResourceError(
            f"{repository}: neither a local folder nor in the cache, and the Hub is not reachable (no "
            "network, or HF_HUB_OFFLINE is set); connect, or name a local folder"
        ) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceError(
                f"{repository}: no disk space left for the download; HF_HOME moves the cache"
            ) from None
        if error.filename is not None:
            raise ResourceError(
                f"{repository}: the cache at {error.filename} is not usable ({error.strerror}); fix its "
                "permissions or set HF_HOME"
            ) from None
        raise ResourceError(f"{repository}: the download failed ({_first_line(error)})") from error
    except Exception as error:
        # the transport below huggingface_hub, and so its exceptions, change between its versions
        raise ResourceError(f"{repository}: the download failed ({_first_line(error)})") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
