"""Model repositories by name: a local folder in diffusers' layout, or an id on the Hugging Face hub."""

import json
import os
import re
from pathlib import Path
from typing import Any

from data_tools.cache.store import local_folder as cache_folder
from data_tools.errors import UserError

WEIGHTS = re.compile(r"(model|diffusion_pytorch_model)(-\d+-of-\d+)?\.safetensors")
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
            try:
                data = json.loads((folder / name).read_text(encoding="utf-8"))
            except ValueError as err:
                raise UserError(f"{flag}: {folder / name} is not readable JSON: {err}") from None
            if not isinstance(data, dict):
                raise UserError(f"{flag}: {folder / name} holds no JSON object")
            return data
    raise UserError(f"{flag}: {folder} has no config.json")


def weight_files(folder: Path, *, flag: str) -> list[Path]:
    """The safetensors files that hold a component's weights, no variants. Raises `UserError`."""
    files = [path for path in folder.iterdir() if WEIGHTS.fullmatch(path.name)]
    if not files:
        raise UserError(f"{flag}: {folder} has no .safetensors weights (pickled .bin files are not read)")
    return sorted(files)


def load(model_class: Any, folder: Path, *, flag: str, **options: Any) -> Any:
    """`model_class.from_pretrained(folder, **options)` of diffusers or transformers, whole or not at all.

    Raises `UserError`, beginning with `flag` and the folder, for files that cannot be read and for weights
    that do not fit the config exactly: both libraries fill gaps with random numbers and go on.
    """
    from safetensors import SafetensorError

    weight_files(folder, flag=flag)  # says so if there are only pickled ones
    try:
        model, info = model_class.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as err:
        raise UserError(f"{flag}: {folder}: cannot be loaded: {first_line(err)}") from None
    if odd := [text for kind in ("missing", "unexpected", "mismatched") if (text := _named(kind, info))]:
        raise UserError(f"{flag}: {folder}: the weights are not those of its config.json: {', '.join(odd)}")
    return model


def first_line(err: BaseException) -> str:
    """What an error says, without the advice that follows."""
    line = next(iter(str(err).strip().splitlines()), type(err).__name__)
    return line.partition(". If you want")[0].rstrip(" .")


def _named(kind: str, info: dict[str, Any]) -> str:
    keys = sorted(str(key) for key in info.get(f"{kind}_keys") or ())
    keys = [key for key in keys if not key.endswith("position_ids")]  # buffers that old CLIP files still hold
    return f"{len(keys)} {kind} (first: {keys[0]})" if keys else ""


def record(name: str, cache: str | Path) -> dict[str, str]:
    """How a cache remembers the repository it was made with.

    A local one relative to the cache, or by its bare name if the cache is on an object store.
    """
    folder, root = Path(name).resolve(), cache_folder(cache)
    if not folder.is_dir():
        return {"hub": name}
    return {"path": folder.name if root is None else os.path.relpath(folder, root.resolve())}


def recall(model: dict[str, str], cache: str | Path, *, flag: str) -> str:
    """The name that `record` took down, as seen from here. Raises `UserError` if the folder is gone."""
    if "path" not in model:
        return model["hub"]
    root = cache_folder(cache)
    if root is None:
        raise UserError(f"{flag}: missing, and {cache} was made with a local folder ({model['path']})")
    folder = os.path.relpath(root.resolve() / model["path"])
    if not Path(folder).is_dir():
        raise UserError(f"{flag}: missing, and the cache was made with {folder}, which is not there any more")
    return folder
