"""Model repositories by name: a local folder in diffusers' layout, or an id on the Hugging Face hub."""

import json
import os
from pathlib import Path
from typing import Any

from data_tools.errors import UserError

PRIOR = "kandinsky-community/kandinsky-2-2-prior"
DECODER = "kandinsky-community/kandinsky-2-2-decoder"


def local_folder(name: str, subfolders: tuple[str, ...], *, flag: str) -> Path:
    """The repository as a local folder; of a hub repository only these subfolders are downloaded.

    Raises `UserError` beginning with `flag` if a subfolder is missing or nothing can be found.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _download(name, subfolders, flag)
    for subfolder in subfolders:
        if not (folder / subfolder).is_dir():
            raise UserError(f"{flag}: {name} has no folder {subfolder}/; wanted the diffusers layout")
    return folder


def _download(name: str, subfolders: tuple[str, ...], flag: str) -> Path:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{flag}: {name}: no such folder, and not a hub id like {PRIOR}")
    from huggingface_hub import snapshot_download

    patterns = ["model_index.json"]
    patterns += [f"{sub}/*.{kind}" for sub in subfolders for kind in ("json", "txt", "safetensors")]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as err:  # the hub client raises its own, requests' and httpx's errors
        reason = (str(err).splitlines() or [type(err).__name__])[0]
        raise UserError(f"{flag}: {name}: neither a folder nor to be had from the hub: {reason}") from None


def config(folder: Path, *, flag: str) -> dict[str, Any]:
    """`config.json` (or the scheduler's, or the preprocessor's) of one component. Raises `UserError`."""
    for name in ("config.json", "scheduler_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            data: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
            return data
    raise UserError(f"{flag}: {folder} has no config.json")


def record(name: str, cache: Path) -> dict[str, str]:
    """How a cache remembers the repository it was made with; local ones relative to the cache."""
    folder = Path(name)
    return {"path": os.path.relpath(folder.resolve(), cache.resolve())} if folder.is_dir() else {"hub": name}


def recall(model: dict[str, str], cache: Path, *, flag: str) -> str:
    """The name that `record` took down, as seen from here. Raises `UserError` if the folder is gone."""
    if "path" not in model:
        return model["hub"]
    folder = os.path.relpath(cache.resolve() / model["path"])
    if not Path(folder).is_dir():
        raise UserError(f"{flag}: missing, and the cache was made with {folder}, which is not there any more")
    return folder
