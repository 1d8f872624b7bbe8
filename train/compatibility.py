"""Does this cache fit this model? Answered from configs and manifests, before any weight is loaded."""

import json
from pathlib import Path
from typing import Any

from data_tools.cache.identity import digest
from data_tools.cache.manifest import Cache
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import LocalStore
from data_tools.errors import UserError


def check_widths(reader: CacheReader, wanted: dict[str, int], model: str) -> None:
    """Raises `UserError`, beginning with `model`, for the first field whose width the model cannot take."""
    found = {field.name: field.shape[-1] for c in reader.columns.values() for field in c.fields}
    for field, width in wanted.items():
        if found[field] != width:
            raise UserError(
                f"{model} takes {field} of width {width}, but {reader.root} holds width {found[field]}; "
                "give the model that the cache was made for"
            )


def check_same_clip(model: Path, reader: CacheReader, *, flag: str) -> None:
    """Refuse a model that an earlier run of ours trained on the embeddings of another CLIP.

    Raises `UserError` naming both sides. A model without run.json says nothing about its CLIP.
    """
    path = model / "run.json"
    if not path.is_file():
        return
    trained_on = json.loads(path.read_text()).get("cache", {}).get("columns", {})
    for name in reader.columns.keys() & trained_on.keys():
        here, there = _encoder(reader.columns[name].identity), _encoder(trained_on[name])
        if here != there:
            raise UserError(
                f"{flag}: {model} was trained on column {name} made by encoder {there}, "
                f"but {reader.root} was made by encoder {here}; the two must be the same"
            )


def _encoder(identity: dict[str, Any]) -> str:
    return digest({key: identity.get(key) for key in ("weights", "config")})[:12]


def latents_column(cache: Path, resolution: int | None) -> str:
    """The latents to train on. Raises `UserError` where there are none, or several and no choice."""
    names = Cache.open(LocalStore(cache)).column_names()
    found = [name for name in names if name.startswith("latents@")]
    listed = ", ".join(name.removeprefix("latents@") for name in found) or "none"
    if resolution is not None:
        if f"latents@{resolution}" not in found:
            raise UserError(f"--resolution: {cache} has no latents of {resolution} px (it has: {listed})")
        return f"latents@{resolution}"
    if not found:
        raise UserError(f"--cache: {cache} has no latents; add them with precompute --resolution PX")
    if len(found) > 1:
        raise UserError(f"--resolution: missing, and {cache} has latents of several: {listed}")
    return found[0]
