"""`data-tools convert`: the same cache in another container, stored dtype or part size, as a new cache.

Null conditions and cached prompts come along. With the dtype unchanged every row keeps its bytes, and its
crc32c is compared. Another dtype changes the `dtype` of each column's identity and nothing else; a value that
it cannot hold stops the conversion.
"""

from dataclasses import dataclass, replace
from typing import Any

from data_tools.cache import copy
from data_tools.cache.cast import recast_column
from data_tools.cache.fields import Column
from data_tools.cache.manifest import NULL_PART, Cache, plan_hash
from data_tools.cache.payload import container_of
from data_tools.cache.plan import plan_source
from data_tools.cache.rows import Container
from data_tools.cache.store import Store, local_folder
from data_tools.cache.tar_part import TarPart
from data_tools.cache.zarr_part import ZarrPart
from data_tools.errors import UserError

FORMATS = ("zarr", "webdataset")


@dataclass(frozen=True)
class ConvertOptions:
    """None: as in the source."""

    format: str | None = None
    "One of `FORMATS`."
    tar_block: int = 0
    "Rows in each member of a tar; 0: as fits."
    dtype: str | None = None
    "float16, bfloat16 or float32."
    part_size: int | None = None
    "Samples in each part."


def convert(source: Cache, dest: Store, options: ConvertOptions) -> str:
    """Copy `source` into `dest`; returns closing lines. The same call again resumes.

    Raises `UserError` for a `dest` that is something else, `DataFault` for a damaged part of the source or a
    value that the new dtype cannot hold.
    """
    refuse_same_place(source.store, dest)
    columns = columns_of(source)
    origin = copy.Origin.whole(source)
    format = options.format or format_of(source, columns)
    part_size = options.part_size or source.part_size()
    about: dict[str, Any] = {
        "command": "convert",
        "format": format,
        "tar_block": options.tar_block,
        "dtype": options.dtype,
        "part_size": part_size,
        "source": plan_hash(origin.plan),
    }
    container = make_container(format, options.tar_block)
    copy.claim(dest, about, flag="DEST")
    plan = plan_source(dest, copy.TableSource([origin]), part_size)
    cache = Cache.open(dest, flag="DEST")
    changed = []
    for column in columns:
        model = copy.moved_model(column.model, source.store, dest)
        changed.append(replace(recast_column(column, options.dtype), model=model))
        copy.declare(cache, changed[-1])
    copied = copy.copy_columns([origin], cache, plan, changed, container)
    return "\n".join(closing_lines(copied, dest))


def columns_of(cache: Cache) -> list[Column]:
    """The declared columns. Raises `UserError` if there is none."""
    found = [cache.column(name) for name in cache.column_names()]
    columns = [column for column in found if column is not None]
    if not columns:
        raise UserError(f"{cache.store.url}: has no columns yet; run precompute")
    return columns


def format_of(cache: Cache, columns: list[Column]) -> str:
    """The container of some committed part, `zarr` where there is none."""
    for column in columns:
        for name in [part.name for part in cache.plan()] + [NULL_PART]:
            commit = cache.commit(column, name)
            if commit is not None:
                return container_of(commit)
    return FORMATS[0]


def make_container(format: str, tar_block: int) -> Container:
    """Raises `UserError` for a block size without a tar."""
    if format == "webdataset":
        return TarPart(tar_block)
    if tar_block:
        raise UserError("--tar-block: is for --format webdataset; zarr parts have no blocks")
    return ZarrPart()


def refuse_same_place(source: Store, dest: Store) -> None:
    """Raises `UserError` if a copy would go into, or around, what it is a copy of."""
    old, new = local_folder(source.url), local_folder(dest.url)
    if old is not None and new is not None:
        inside = old.resolve() in (new.resolve(), *new.resolve().parents)
    else:
        inside = f"{dest.url}/".startswith(f"{source.url}/")
    if inside:
        raise UserError(f"DEST: {dest.url} lies in {source.url}, which is to be copied; give a new folder")


def closing_lines(copied: copy.Copied, dest: Store) -> list[str]:
    lines = [
        f"{dest.url}: parts of {', '.join(f'{n} {name}' for name, n in copied.waiting.items())} wait for the "
        "source; run precompute on it, then this command again"
    ] * bool(copied.waiting)
    word = f"{copied.parts} parts copied" if copied.parts else "nothing to do: every part is there"
    return [*lines, f"{dest.url}: {word}"] if copied.parts or not copied.waiting else lines
