"""Where the target's tokenizer is. The engine finds and fetches models; the server only looks where they then are."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from specproxy.config.load import HOUSE
from specproxy.errors import ModelLoadError


def local_folder(path: str) -> Path | None:
    """The folder of a target that needs no fetching; ``None`` for a Hugging Face id."""
    if path == HOUSE:
        return Path(str(resources.files("specproxy"))) / "models" / "house" / "target"
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else None


def fetched_folder(path: str) -> Path:
    """The local copy of a Hugging Face id that the engine has fetched. Raises ModelLoadError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: the engine loaded it, but its tokenizer is not in the cache: {error}") from None
