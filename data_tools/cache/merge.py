"""`data-tools merge`: several caches of the same encoders as one new cache.

The samples of the first source come first, then what the second adds, and so on. A sample that several list
(same key, captions and size) is kept once, from the first that lists it, with its rejects; the same key with
anything else under it is an error. Null conditions come from the first source, sets of cached prompts from
all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from tqdm import tqdm

from data_tools.cache import convert, copy
from data_tools.cache.fields import Column
from data_tools.cache.identity import differences
from data_tools.cache.manifest import NULL_PART, Cache, dump, plan_hash
from data_tools.cache.payload import PartPayload
from data_tools.cache.plan import plan_source
from data_tools.cache.store import Store
from data_tools.errors import UserError

NOT_CONTENT = {"key", "place", "mtime_ns", "source", "picture_was", "captions_was"}
"What may differ between two listings of one sample."


@dataclass(frozen=True)
class MergeOptions:
    columns: tuple[str, ...] | None = None
    "Only these; None: all, which every source must have."
    format: str | None = None
    "One of `convert.FORMATS`; None: as in the first source."
    tar_block: int = 0
    "Rows in each member of a tar; 0: as fits."
    part_size: int | None = None
    "Samples in each part; None: as in the first source."


def merge(sources: Sequence[Cache], dest: Store, options: MergeOptions) -> str:
    """Copy all sources into `dest`; returns closing lines. The same call again resumes.

    Raises `UserError` for columns that differ, samples that contradict each other, and a `dest` that is
    something else; `DataFault` for a damaged part of a source.
    """
    for source in sources:
        convert.refuse_same_place(source.store, dest)
    columns = common_columns(sources, options.columns)
    origins = [copy.Origin.whole(source) for source in sources]
    format = options.format or convert.format_of(sources[0], columns)
    part_size = options.part_size or sources[0].part_size()
    about: dict[str, Any] = {
        "command": "merge",
        "columns": None if options.columns is None else sorted(options.columns),
        "format": format,
        "tar_block": options.tar_block,
        "part_size": part_size,
        **{f"source {i}": plan_hash(origin.plan) for i, origin in enumerate(origins, 1)},
    }
    container = convert.make_container(format, options.tar_block)
    origins, repeated = without_repeats(origins)
    copy.claim(dest, about, flag="DEST")
    plan = plan_source(dest, copy.TableSource(origins), part_size)
    cache = Cache.open(dest, flag="DEST")
    changed = []
    for column in columns:
        model = copy.moved_model(column.model, sources[0].store, dest)
        changed.append(replace(column, model=model))
        copy.declare(cache, changed[-1])
    copied = copy.copy_columns(origins, cache, plan, changed, container)
    lines = [_null_line(sources, column) for column in columns if column.has_null]
    if repeated:
        lines.append(f"{repeated} samples were in more than one source and are kept once, from the first")
    return "\n".join([*lines, *convert.closing_lines(copied, dest)])


def common_columns(sources: Sequence[Cache], names: tuple[str, ...] | None) -> list[Column]:
    """The columns to merge, as the first source declares them.

    Raises `UserError` unless each source has each of them, with the same identity.
    """
    wanted = names or tuple(dict.fromkeys(c.name for source in sources for c in convert.columns_of(source)))
    columns = []
    for name in wanted:
        found = [source.column(name) for source in sources]
        first = found[0]
        for source, column in zip(sources, found):
            if column is None or first is None:
                lacking = source.store.url if column is None else sources[0].store.url
                raise UserError(
                    f"SOURCE: {lacking} has no column {name}; add it with precompute, or merge only what all "
                    "have with --columns"
                )
            if column.identity != first.identity or column.fields != first.fields:
                keys = "; ".join(differences(first.identity, column.identity)) or "other fields"
                both = f"{sources[0].store.url} and {source.store.url}"
                raise UserError(f"SOURCE: column {name} was made differently in {both} ({keys})")
        assert first is not None
        columns.append(first)
    return columns


def without_repeats(origins: Sequence[copy.Origin]) -> tuple[list[copy.Origin], int]:
    """The origins, each keeping only samples that none before it lists; and how many were left out.

    Retired samples are not kept and count for nothing.

    Raises `UserError` for a key under which two sources list different samples. Memory: 32 bytes a sample.
    """
    sums = [_hashes(origin) for origin in origins]
    everything = np.concatenate([np.zeros(0, dtype=sums[0].dtype), *sums])
    order = np.lexsort((everything["low"], everything["high"]))  # stable: earlier sources stay first
    keep = np.concatenate([origin.keep for origin in origins])
    order = order[keep[order]]
    ordered = everything[order]
    again = (ordered["high"][1:] == ordered["high"][:-1]) & (ordered["low"][1:] == ordered["low"][:-1])
    changed = np.flatnonzero(again & (ordered["content"][1:] != ordered["content"][:-1]))
    if len(changed):
        raise _contradiction(origins, int(order[changed[0]]), int(order[changed[0] + 1]))
    keep[order[1:][again]] = False
    bounds = np.cumsum([0, *(len(found) for found in sums)]).tolist()
    kept = [replace(o, keep=keep[begin:end]) for o, begin, end in zip(origins, bounds, bounds[1:])]
    return kept, int(again.sum())


def _hashes(origin: copy.Origin) -> NDArray[Any]:
    """xxh3-128 of each sample's key as `high` and `low`, xxh3-64 of what else tells it apart as `content`."""
    found = np.zeros(len(origin.keep), dtype=[("high", "u8"), ("low", "u8"), ("content", "u8")])
    number = 0
    with tqdm(total=len(found), unit=" samples", desc="compare", delay=1) as bar:
        for part in origin.plan:
            for row in origin.cache.table(part):
                key = xxhash.xxh3_128_intdigest(row["key"].encode())
                content = {name: value for name, value in row.items() if name not in NOT_CONTENT}
                found[number] = key >> 64, key & (2**64 - 1), xxhash.xxh3_64_intdigest(dump(content))
                number += 1
            bar.update(part.samples)
    return found


def _contradiction(origins: Sequence[copy.Origin], first: int, second: int) -> UserError:
    """The error for two samples, by their numbers over all origins."""
    (one, row), (other, changed) = _row(origins, first), _row(origins, second)
    names = [*row, *(changed.keys() - row.keys())]
    keys = [name for name in names if name not in NOT_CONTENT and row.get(name) != changed.get(name)]
    found = "; ".join(f"{name} {row.get(name)!r} and {changed.get(name)!r}" for name in keys)
    both = f"{one.cache.store.url} and {other.cache.store.url}"
    return UserError(f"SOURCE: sample {row['key']} is not the same in {both} ({found}); take it out of one")


def _row(origins: Sequence[copy.Origin], number: int) -> tuple[copy.Origin, dict[str, Any]]:
    for origin in origins:
        for part in origin.plan:
            if number < part.samples:
                return origin, origin.cache.table(part)[number]
            number -= part.samples
    raise AssertionError(number)


def _null_line(sources: Sequence[Cache], column: Column) -> str:
    """Where the null condition came from, and whether the others' is bit for bit the same."""
    sums = []
    for source in sources:
        declared = source.column(column.name)
        commit = source.commit(declared, NULL_PART) if declared is not None else None
        sums.append(PartPayload.open(source, column, commit).crc32c(0) if commit is not None else None)
    others = [source.store.url for source, found in zip(sources, sums) if found != sums[0]]
    if sums[0] is None:
        return f"null condition of {column.name}: {sources[0].store.url} has none yet"
    word = f"those of {', '.join(others)} differ" if others else "bit-equal in all sources"
    return f"null condition of {column.name}: from {sources[0].store.url}; {word}"
