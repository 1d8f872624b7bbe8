"""`data-tools gc`: what no plan, declaration or commit record names, and nothing has written to for a while.

Removed are attempts that were never committed (or whose commit record a repair has withdrawn), `.tmp-` files
of killed writers, sample tables of no plan, generations that two newer ones cover, records of touched files
but the newest, and the objects of identities that a column neither has nor is being redone to. What a commit
record of a declared column, or of a redo that is under way, or one of its two newest generations names is
never touched, nor is anything that has no place in the format. An unreadable plan, declaration, commit record
or generation stops it before anything is removed.

The age of an identity that was replaced counts from the moment of that: a trainer may still read it. Sample
tables are as old as the youngest that no plan names: one plan may be days in the making. Ages are by this
machine's clock; S3 refuses requests of one that is 15 minutes off. An upload that died half-way is no object:
a lifecycle rule of the bucket ends it.

Memory: 160 bytes for each sample table and attempt that stays, 320 for each object that may go; of all other
objects one page of the listing.
"""

import json
import math
import re
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import xxhash
from tqdm import tqdm

from data_tools.cache import redo, touched
from data_tools.cache.fields import Column
from data_tools.cache.generation import NUMBER, load
from data_tools.cache.manifest import NULL_PART, PROMPTS, SEAL, Cache, column_folder, dump
from data_tools.cache.store import TEMPORARY, Listed, Store
from data_tools.errors import DataFault

KEPT_GENERATIONS = 2
"The newest, and the one that a reader may be about to open."
TABLE = re.compile(r"part-\d+-[0-9a-f]{8}\.jsonl")
IDENTITY = re.compile(r"[0-9a-f]{12}")
ATTEMPT = re.compile(
    rf"((part-\d+|{NULL_PART}|{PROMPTS}[0-9a-f]+)-[0-9a-f]{{8}})\.(?:zarr|tar|npz)"  # <part>-<attempt>, part
)
ORPHAN = "attempt that no commit record names"
REPLACED = "another identity than the declared one"
UNPLANNED = "sample table of no plan"
UNFINISHED = "left by a killed writer"
COVERED = "generation or record of touched files that newer ones cover"


@dataclass(frozen=True)
class Garbage:
    """Objects that go together."""

    tops: tuple[str, ...]
    "The names of the files, and of the folders that go as a whole."
    why: str
    objects: tuple[Listed, ...]
    newest: float
    "Seconds since 1970 of the last change of any of them."

    @property
    def num_bytes(self) -> int:
        return sum(item.size for item in self.objects)


@dataclass(frozen=True)
class Place:
    """Where an object that may go stands."""

    group: str
    "The same for all that go together."
    top: str
    "The file or folder that goes as a whole."
    why: str


@dataclass(frozen=True)
class Named:
    """What stays."""

    tables: set[str]
    columns: set[str]
    "Those that are declared."
    attempts: dict[str, set[str]]
    "Folder of each identity that a column has or is being redone to → `<part>-<attempt>` of all it names."

    def place(self, name: str) -> Place | None:
        """Where an object stands that nothing names; None: it stays."""
        folder, *below = name.split("/")
        if folder == "samples" and len(below) == 1 and TABLE.fullmatch(below[0]):
            # before there is a plan it cannot be known whose they are
            return Place(name, name, UNPLANNED) if self.tables and name not in self.tables else None
        if folder == "columns" and len(below) > 2 and below[0] in self.columns:
            identity = f"columns/{below[0]}/{below[1]}"
            if identity not in self.attempts and IDENTITY.fullmatch(below[1]):
                return Place(identity, identity, REPLACED)
            found = _attempt(name)
            if identity in self.attempts and found and found[1] not in self.attempts[identity]:
                return Place(f"{identity}/parts/{found[1]}", f"{identity}/parts/{found[0]}", ORPHAN)
        return _temporary(name)


def collect(
    cache: Cache, *, older_than_hours: float = 24.0, dry_run: bool = False, flag: str = "CACHE"
) -> tuple[list[Garbage], list[Garbage]]:
    """Remove garbage older than so many hours; what was removed (or would be) and what is too young.

    Raises `DataFault` where a record cannot be read.
    """
    limit = time.time() - 3600 * older_than_hours
    found = sorted(find(cache, cache.store.listed()), key=lambda garbage: garbage.tops)
    young = [garbage for garbage in found if garbage.newest >= limit]
    old = [garbage for garbage in found if garbage.newest < limit]
    removed = _still_garbage(Cache.open(cache.store, flag=flag), old)
    if not dry_run:
        _remove(cache.store, [item.name for garbage in removed for item in garbage.objects])
    return removed, young


def find(cache: Cache, objects: Iterable[Listed]) -> Iterator[Garbage]:
    """All garbage among the objects of a cache, of any age. Reads every commit record first."""
    named = _named(cache)
    groups: dict[str, dict[str, list[Listed]]] = {}
    reasons: dict[str, str] = {}
    generations: dict[str, list[Listed]] = {identity: [] for identity in named.attempts}
    records: dict[str, list[Listed]] = {}
    declared: dict[str, float] = {}
    last_table = 0.0
    for item in tqdm(objects, unit=" objects", desc="list", delay=1, leave=False):
        folder, _, last = item.name.rpartition("/")
        identity, _, kind = folder.rpartition("/")
        if kind == "generations" and identity in generations and NUMBER.fullmatch(last):
            generations[identity].append(item)
        elif folder == touched.FOLDER and (record := touched.NAME.fullmatch(last)):
            records.setdefault(record[1], []).append(item)
        elif last == "column.json" and identity == "columns":
            declared[folder] = item.modified
        elif (place := named.place(item.name)) is not None:
            reasons[place.group] = place.why
            if place.why == UNPLANNED:
                last_table = max(last_table, item.modified)
            groups.setdefault(place.group, {}).setdefault(place.top, []).append(item)
    numbered = [(of_one, KEPT_GENERATIONS) for of_one in generations.values()]
    numbered += [(of_one, 1) for of_one in records.values()]
    for of_one, kept in numbered:
        for item in sorted(of_one, key=lambda item: _number(item.name))[:-kept]:
            yield Garbage((item.name,), COVERED, (item,), item.modified)
    for group, tops in groups.items():
        items = tuple(item for found in tops.values() for item in found)
        newest = max(item.modified for item in items)
        if reasons[group] == REPLACED:  # counts from then; not seen: just now
            newest = max(newest, declared.get(group.rpartition("/")[0], math.inf))
        elif reasons[group] == UNPLANNED:  # its plan is written after the last table
            newest = last_table
        yield Garbage(tuple(sorted(tops)), reasons[group], items, newest)


def _still_garbage(cache: Cache, found: list[Garbage]) -> list[Garbage]:
    """Without what was planned, declared, announced or committed since it was found."""
    if not found:
        return []
    tops = (_attempt(top) for garbage in found for top in garbage.tops)
    named = _named(cache, {attempt[2] for attempt in tops if attempt})
    tables = set(cache.store.listed("samples"))  # their names follow from what they hold: one may be new

    def still(garbage: Garbage) -> bool:
        if garbage.why == COVERED:
            return True
        changed = garbage.why == UNPLANNED and not tables.issuperset(garbage.objects)
        return not changed and all(named.place(item.name) for item in garbage.objects)

    return [garbage for garbage in found if still(garbage)]


def _named(cache: Cache, parts: set[str] | None = None) -> Named:
    """What plans, declarations, redos, commit records (only of some parts) and generations name.

    Raises `DataFault` for any of them that cannot be read.
    """
    tables = _tables(cache)
    made = {name: _made(cache, name) for name in cache.column_names()}
    columns = [column for found in made.values() for column in found]
    attempts = {column_folder(column): _attempts(cache, column, parts) for column in columns}
    return Named(tables, {name for name, found in made.items() if found}, attempts)


def _made(cache: Cache, name: str) -> list[Column]:
    """The declared column, and what a redo that is under way makes of it. None if it is not declared."""
    declared = cache.column(name)
    if declared is None:
        return []  # whose the folders below it are cannot be known
    made = redo.pending(cache, name)
    return [declared] if made is None else [declared, made]


def _attempts(cache: Cache, column: Column, parts: set[str] | None) -> set[str]:
    """`<part>-<attempt>` of all objects (the index is one) that a column's records name."""
    found = _kept_by_generations(cache, column)
    wanted = sorted(part for part in cache.committed(column) if parts is None or part in parts)
    with ThreadPoolExecutor(cache.store.concurrency) as pool:
        read = pool.map(lambda part: cache.commit(column, part), wanted)
        bar = tqdm(read, unit=" records", total=len(wanted), desc=column.name, delay=1, leave=False)
        for commit in bar:
            found |= _stems(item.name for item in commit.objects) if commit is not None else set()
    return found


def _kept_by_generations(cache: Cache, column: Column) -> set[str]:
    """What the newest generations name: a reader may have opened one before a repair."""
    folder = f"{column_folder(column)}/generations"
    files = [name for name in cache.store.names(folder) if NUMBER.fullmatch(name)]
    found: set[str] = set()
    for file in sorted(files, key=_number)[-KEPT_GENERATIONS:]:
        try:
            kept = load(cache, column, f"{folder}/{file}")
        except KeyError:  # of an older program; readers go by the commit records
            continue
        except ValueError as err:
            where = f"{cache.store.url}: {folder}/{file}"
            raise DataFault(f"{where} {err}; run precompute --repair first") from None
        found |= _stems(name.decode() for name in (*kept.index.tolist(), *kept.object.ravel().tolist()))
    return found


def _stems(names: Iterable[str]) -> set[str]:
    return {attempt[1] for attempt in map(_attempt, names) if attempt}


def _attempt(name: str) -> re.Match[str] | None:
    """The attempt that an object below parts/ belongs to."""
    folders = name.split("/", 5)
    return ATTEMPT.fullmatch(folders[4]) if len(folders) > 4 and folders[3] == "parts" else None


def _temporary(name: str) -> Place | None:
    """A file that a writer has not finished, where writers have any."""
    parts = name.split("/")
    depth = next((depth for depth, part in enumerate(parts) if part.startswith(TEMPORARY)), None)
    deepest = {"columns": len(parts), "plans": 1, "samples": 1, touched.FOLDER: 1}.get(parts[0], 0)
    if depth is None or depth > deepest:
        return None
    top = "/".join(parts[: depth + 1])
    return Place(top, top, UNFINISHED)


def _tables(cache: Cache) -> set[str]:
    """Every sample table that any plan, old or new, names. Raises `DataFault` for an unreadable one."""
    found: set[str] = set()
    for name in cache.store.names("plans"):
        try:
            plan = json.loads(cache.store.read(f"plans/{name}"))
            sound = plan.pop(SEAL, None) == xxhash.xxh3_128_hexdigest(dump(plan))
        except (ValueError, AttributeError):
            sound = False
        if not sound:
            raise DataFault(f"{cache.store.url}: plans/{name} is damaged; run data-tools verify first")
        found |= {text for text in _texts(plan) if text.startswith("samples/")}
    return found


def _texts(data: Any) -> Iterator[str]:
    """Every string in a JSON value."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict | list):
        for item in data.values() if isinstance(data, dict) else data:
            yield from _texts(item)


def _remove(store: Store, names: list[str]) -> None:
    """Generations, then commit records, then the rest: killed half-way, nothing names what is gone."""

    def rank(name: str) -> int:
        return 0 if "/generations/" in name else 1 if "/commits/" in name else 2

    for _, same in groupby(sorted(names, key=rank), key=rank):
        store.remove_many(list(same))


def _number(name: str) -> int:
    """Of a generation, or of a record of touched files."""
    return int(re.findall(r"\d+", name)[-1])
