"""`data-tools verify`: is everything in a cache still what was committed?

Always: plan, sample tables, declarations, commit records and generations readable and sealed, every object
there with its size, every extent index with its hash and in agreement with the sample table. In full also
every object's xxh3-128, every row's crc32c through the index, and that all values are finite. Threads take a
part each (reads, hashes and crc32c release the GIL). Memory: the largest object a thread.
"""

import os
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from tqdm import tqdm

from data_tools.cache.extents import FieldExtents, PartIndex
from data_tools.cache.fields import Column, Field, finite
from data_tools.cache.generation import load
from data_tools.cache.identity import digest
from data_tools.cache.manifest import (
    NULL_PART,
    Cache,
    Commit,
    Part,
    column_folder,
    latest_plan_number,
    plan_name,
)
from data_tools.cache.payload import cut_row
from data_tools.cache.verify import load_index, size_faults
from data_tools.errors import DataFault

Table = list[dict[str, Any]]
REPAIR, WITHDRAW, RESTORE = "repair", "withdraw", "restore"
"What helps: precompute --repair; deleting the commit record first, since its bytes are as committed; a copy."


@dataclass(frozen=True)
class Fault:
    column: str
    "Empty for what belongs to no column."
    part: str
    what: str
    remedy: str = REPAIR

    def __str__(self) -> str:
        return ": ".join([", ".join(word for word in (self.column, self.part) if word), self.what])


@dataclass(frozen=True)
class Verified:
    faults: list[Fault]
    parts: int
    "Committed ones, over all columns."
    objects: int
    num_bytes: int
    "Of all objects; all of them were read if in full."
    missing: int
    "Parts that are not committed yet."


@dataclass(frozen=True)
class _Known:
    """What is read before the parts."""

    cache: Cache
    plan: dict[str, Part]
    columns: list[Column]
    generations: dict[str, dict[str, tuple[str, str]]]
    "Column → part → its extent index and that one's hash."


def verify(cache: Cache, *, full: bool = False, num_threads: int | None = None) -> Verified:
    """Look at every committed part of every column. Faults are returned, all of them, and none is raised.

    Raises `UserError` only for a cache that has no plan yet.
    """
    faults: list[Fault] = []
    known = _known(cache, faults)
    commits = {column.name: _committed(cache, column) for column in known.columns}
    names = sorted(known.plan.keys() | {part for parts in commits.values() for part in parts})
    found: list[tuple[list[Fault], Commit | None]] = []
    threads = num_threads or min(8, max(os.cpu_count() or 1, cache.store.concurrency))
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(names), unit=" parts", desc="verify", delay=1) as bar,
    ):
        for results in pool.map(lambda name: list(_check_part(known, name, full)), names):
            found += results
            bar.update(1)
    faults += [fault for some, _ in found for fault in some]
    whole = [commit for _, commit in found if commit is not None]
    expected = sum(len(known.plan) + column.has_null for column in known.columns)
    present = sum(
        len(parts & (known.plan.keys() | ({NULL_PART} if column.has_null else set())))
        for column, parts in ((column, commits[column.name]) for column in known.columns)
    )
    return Verified(
        faults=faults,
        parts=len(whole),
        objects=sum(len(commit.objects) for commit in whole),
        num_bytes=sum(item.size for commit in whole for item in commit.objects),
        missing=expected - present,
    )


def remedies(verified: Verified, place: str) -> str:
    """The line that follows the faults: how many, and what to do about them."""
    kinds = Counter(fault.remedy for fault in verified.faults)
    damaged = {(fault.column, fault.part) for fault in verified.faults}
    words = []
    if kinds[REPAIR]:
        command = f"precompute --repair --cache {shlex.quote(place)}"
        words.append(f"redo with: {command} and the other options it was made with")
    if kinds[WITHDRAW]:
        words.append("what was written wrong: delete the part's commit record, then run precompute")
    if kinds[RESTORE]:
        words.append("plans: put them back from a copy")
    return f"{place}: {len(verified.faults)} faults in {len(damaged)} places; {'; '.join(words)}"


def _known(cache: Cache, faults: list[Fault]) -> _Known:
    plan: list[Part] = []
    newest = latest_plan_number(cache.store)
    for number in range(1, newest):  # nobody reads them but gc, for the sample tables that they name
        try:
            cache.read_json(plan_name(number))
        except DataFault as err:
            faults.append(Fault("", f"plan {number}", str(err), RESTORE))
    try:
        plan = cache.plan()
    except DataFault as err:
        faults.append(Fault("", "plan", str(err), RESTORE))
    columns = []
    for name in cache.column_names():
        try:
            column = cache.column(name)
        except (DataFault, KeyError, TypeError, ValueError) as err:
            faults.append(Fault(name, "declaration", str(err)))
            continue
        if column is not None:
            columns.append(column)
        elif any(_commits_below(cache, name)):  # else a run was stopped before it declared the column
            faults.append(Fault(name, "declaration", f"columns/{name}/column.json is missing"))
    generations = {column.name: _generation(cache, column, faults) for column in columns}
    return _Known(cache, {part.name: part for part in plan}, columns, generations)


def _commits_below(cache: Cache, column: str) -> Iterator[str]:
    """Commit records in any folder of a column, whatever its identity."""
    for identity in cache.store.names(f"columns/{column}"):
        yield from cache.store.names(f"columns/{column}/{identity}/commits")


def _generation(cache: Cache, column: Column, faults: list[Fault]) -> dict[str, tuple[str, str]]:
    """What the latest generation says of each part; nothing if there is none."""
    folder = f"{column_folder(column)}/generations"
    names = cache.store.names(folder)
    if not names:
        return {}
    latest = None
    for name in names:  # readers take the last; the others are looked at because they are there
        try:
            latest = load(cache, column, f"{folder}/{name}")
        except (ValueError, KeyError, OSError) as err:
            faults.append(Fault(column.name, f"generation {name}", str(err)))
            latest = None
    if latest is None:
        return {}
    pairs = zip(latest.index.tolist(), latest.index_hash.tolist())
    named = {name.decode(): (i.decode(), h.decode()) for name, (i, h) in zip(latest.part.tolist(), pairs)}
    for part in sorted(named.keys() - _committed(cache, column)):
        faults.append(Fault(column.name, part, f"generation {names[-1]} names it, but it is not committed"))
    return named


def _committed(cache: Cache, column: Column) -> set[str]:
    return {name.removesuffix(".json") for name in cache.store.names(f"{column_folder(column)}/commits")}


def _check_part(known: _Known, name: str, full: bool) -> Iterator[tuple[list[Fault], Commit | None]]:
    """The faults of a part's sample table, then of the part in each column, with its commit record."""
    part, table = known.plan.get(name), None
    if part is not None:
        try:
            table = known.cache.table(part)
            if len(table) != part.samples:
                raise DataFault(f"sample table has {len(table)} lines, the plan says {part.samples}")
        except (DataFault, ValueError) as err:
            table = None
            yield [Fault("", name, str(err))], None
    for column in known.columns:
        try:
            commit = known.cache.commit(column, name)
        except (DataFault, KeyError, TypeError) as err:
            yield [Fault(column.name, name, f"commit record: {err}")], None
            continue
        if commit is None:
            continue
        try:
            damage, index = _damage(known, column, commit, full)
            wrong = [Fault(column.name, name, what) for what in damage]
            if index is not None and not damage:
                said = _contradictions(column, commit, index, part, table)
                wrong = [Fault(column.name, name, what, WITHDRAW) for what in said]
        except OSError as err:
            wrong = [Fault(column.name, name, f"cannot be read: {err}")]
        yield wrong, commit


def _damage(known: _Known, column: Column, commit: Commit, full: bool) -> tuple[list[str], PartIndex | None]:
    """What is no more as it was committed; and the extent index, if it can be read."""
    store, hashes = known.cache.store, {item.name: item.xxh3_128 for item in commit.objects}
    if (commit.column, commit.identity) != (column.name, digest(column.identity)):
        return [f"commit record is of column {commit.column}, identity {commit.identity[:12]}"], None
    faults = size_faults(store, commit)
    lost = {fault.split(" ", 1)[0] for fault in faults}
    said = known.generations[column.name].get(commit.part)
    if said is not None and said != (commit.index, hashes.get(commit.index)):
        faults.append("the latest generation names another attempt")
    if commit.index in lost:
        return faults, None
    try:
        index = load_index(store, commit)
    except (ValueError, StopIteration) as err:
        return [*faults, str(err) or f"{commit.index} is not among its objects"], None
    for name in sorted(hashes.keys() - lost) if full else ():
        content = store.read(name)
        if xxhash.xxh3_128_hexdigest(content) != hashes[name]:
            faults.append(f"{name} has changed bytes (xxh3-128 differs)")
        for field in column.fields:
            extents = index.fields.get(field.name)
            if extents is not None and extents.object == name:
                faults += _row_faults(np.frombuffer(content, dtype=np.uint8), extents, field)
    return faults, index


def _row_faults(data: NDArray[np.uint8], extents: FieldExtents, field: Field) -> list[str]:
    """One line for all rows of a field that differ from their crc32c, one for those that are not finite."""
    changed, infinite = [], []
    for row in range(len(extents.offset)):
        try:
            value = cut_row(data, extents, field, row)
        except ValueError:
            changed.append(row)
            continue
        if not finite(value, field.dtype):
            infinite.append(row)
    lines = [(changed, "crc32c differs"), (infinite, "NaN or infinity")]
    return [f"{field.name}: {what} in {_rows(rows)}" for rows, what in lines if rows]


def _rows(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:8])) + (", …" if len(rows) > 8 else "")
    return f"row {shown}" if len(rows) == 1 else f"{len(rows)} rows ({shown})"


def _contradictions(
    column: Column, commit: Commit, index: PartIndex, part: Part | None, table: Table | None
) -> Iterator[str]:
    """What was committed, but does not fit together. Of retired samples a part may have any or none."""
    counts = np.diff(index.row_offsets)
    rows = int(index.row_offsets[-1])
    if (len(index.sample_index), len(counts), rows) != (commit.samples, commit.samples, commit.rows):
        yield f"index has {rows} rows of {len(counts)} samples, its record {commit.rows} of {commit.samples}"
        return
    for field in column.fields:
        extents = index.fields.get(field.name)
        if extents is None or len(extents.offset) != rows:
            yield f"{field.name}: index does not place all {rows} rows"
    if commit.prompts and index.key_hash.tolist() != _key_hashes(commit.prompts):
        yield "rows are not those of its prompts"
    if table is None or part is None:
        return
    if len({*index.sample_index.tolist()} & {*range(len(table))}) != commit.samples:
        yield "index names samples that the sample table has not, or one twice"
        return
    live = part.is_live()
    retired = {row["key"] for row, is_live in zip(table, live) if not is_live}
    samples = int(live[index.sample_index].sum())
    rejects = sum(reject["key"] not in retired for reject in commit.rejects)
    if samples + rejects != part.live:
        yield f"{samples} samples and {rejects} rejects are not the plan's {part.live}"
    listed = [table[position] for position in index.sample_index.tolist()]
    if index.key_hash.tolist() != _key_hashes(row["key"] for row in listed):
        yield "keys are not those of the sample table"
    if column.name == "text" and counts.tolist() != [len(row["captions"]) for row in listed]:
        yield "rows are not as many as captions"


def _key_hashes(keys: Iterable[str]) -> list[int]:
    return [xxhash.xxh3_64_intdigest(key.encode()) for key in keys]
