"""Does this cache fit this model? Answered from configs and manifests, before any weight is loaded."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data_tools import models
from data_tools.cache.identity import digest, hash_files
from data_tools.cache.manifest import Cache
from data_tools.cache.mixture import Reader
from data_tools.cache.places import CachePlace
from data_tools.cache.store import open_store
from data_tools.errors import UserError
from train.export import Base


def check_widths(reader: Reader, wanted: dict[str, int], model: str) -> None:
    """Raises `UserError`, beginning with `model`, for the first field whose width the model cannot take."""
    found = {field.name: field.shape[-1] for c in reader.columns.values() for field in c.fields}
    for field, width in wanted.items():
        if found[field] != width:
            raise UserError(
                f"{model} takes {field} of width {width}, but {reader.url} holds width {found[field]}; "
                "give the model that the cache was made for"
            )


def check_same_clip(model: Path, reader: Reader, *, flag: str) -> None:
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
                f"but {reader.url} was made by encoder {here}; the two must be the same"
            )


def _encoder(identity: dict[str, Any]) -> str:
    return digest({key: identity.get(key) for key in ("weights", "config")})[:12]


def check_encoders(base: Base, made: dict[str, str], reader: Reader) -> None:
    """Refuse a base whose own encoders are not those that made the cache. `made`: component → its column.

    The encoders' files are part of the result, so a pipeline with others would be fed what it never saw.
    """
    for component in made.keys() & set(base.components):
        column = made[component]
        here = sorted(hash_files(models.weight_files(base.folder / component, flag=base.flag)).values())
        there = sorted(reader.columns[column].identity["weights"].values())
        if here != there:
            raise UserError(
                f"{base.flag}: {base.name} has a {component} with weights {_short(here)}, but column "
                f"{column} of {reader.url} was made by {_short(there)}; the two must be the same"
            )


def _short(hashes: list[str]) -> str:
    """One file's sha256 as the hub shows it; of several files one for all."""
    return (hashes[0] if len(hashes) == 1 else digest({"weights": hashes}))[:12]


def check_prior(name: str, *, flag: str) -> None:
    """Refuse what the finished decoder could not be drawn with: neither a prior's folder nor a hub id."""
    folder = Path(name)
    if folder.is_dir():
        lacking = [x for x in ("prior", "model_index.json") if not (folder / x).exists()]
        if lacking:
            raise UserError(f"{flag}: {name} has no {lacking[0]}; wanted a prior in the diffusers layout")
    elif not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        raise UserError(f"{flag}: {name}: no such folder, and not a hub id like {models.PRIOR}")


def latents_column(places: Sequence[CachePlace], resolution: int | None) -> str:
    """The latents to train on, of the first cache. Raises `UserError` for none, or several and no choice."""
    cache = places[0].place
    names = Cache.open(open_store(cache)).column_names()
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
