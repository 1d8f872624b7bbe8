"""`data-tools gc`: what no plan, declaration or commit record names, and nothing has written to for a while.

Removed are attempts that were never committed (or whose commit record a repair has withdrawn), `.tmp-` files
of killed writers, sample tables of no plan, generations that two newer ones cover, and the files of
identities that a column neither has nor is being redone to. What a commit record of a declared column, or of
a redo that is under way, names is never touched, nor is anything that has no place in the format. An
unreadable plan, declaration or commit record stops it before anything is removed.

The age of an identity that was replaced counts from the moment of that: a trainer may still read it.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from data_tools.cache import redo
from data_tools.cache.fields import Column
from data_tools.cache.generation import NUMBER
from data_tools.cache.manifest import SEAL, Cache, column_folder, dump
from data_tools.cache.store import local_folder
from data_tools.errors import DataFault, UserError

TEMPORARY = ".tmp-"
KEPT_GENERATIONS = 2
"The newest, and the one that a reader may be about to open."


@dataclass(frozen=True)
class Garbage:
    """Files that go together."""

    paths: tuple[Path, ...]
    "Files and folders."
    why: str
    num_bytes: int
    newest: float
    "Seconds since 1970 of the last change of any of them."
    column: str = ""
    "Whose attempt, or identity, it is; that one's record is looked at once more before anything is removed."


def collect(
    cache: Cache, *, older_than_hours: float = 24.0, dry_run: bool = False, flag: str = "CACHE"
) -> tuple[list[Garbage], list[Garbage]]:
    """Remove garbage older than so many hours; what was removed (or would be) and what is too young.

    Raises `UserError` for a cache that is not a local folder, `DataFault` where a record cannot be read.
    """
    root = local_folder(cache.store.url, flag=flag)
    if root is None:
        raise UserError(
            f"{flag}: gc works on local folders, not on {cache.store.url}; use a lifecycle rule there"
        )
    limit = time.time() - 3600 * older_than_hours
    found = sorted(find(cache, root), key=lambda garbage: garbage.paths)
    old = [garbage for garbage in found if garbage.newest < limit]
    young = [garbage for garbage in found if garbage.newest >= limit]
    removed = []
    for garbage in old:
        if _named_by_now(Cache.open(cache.store, flag=flag), garbage):
            continue
        removed.append(garbage)
        for path in () if dry_run else garbage.paths:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return removed, young


def find(cache: Cache, root: Path) -> Iterator[Garbage]:
    """All garbage in a local cache, of any age. Reads every commit record."""
    tables = _tables(cache)
    for path in _entries(root / "samples"):
        if not path.name.startswith(TEMPORARY) and f"samples/{path.name}" not in tables:
            yield _garbage([path], "sample table of no plan")
    gone: set[Path] = set()
    for name in cache.column_names():
        for garbage in _of_column(cache, root, name):
            gone |= {*garbage.paths}
            yield garbage
    for top in (root, root / "plans", root / "samples", root / "columns"):
        yield from _temporary(top, gone, deep=top.name == "columns" and top != root)


def _of_column(cache: Cache, root: Path, name: str) -> Iterator[Garbage]:
    kept = {Path(column_folder(column)).name: column for column in _made(cache, name)}
    if not kept:
        return  # not declared yet: whose it is cannot be known
    replaced = (root / "columns" / name / "column.json").stat().st_mtime
    for folder in _entries(root / "columns" / name):
        if not folder.is_dir() or folder.is_symlink():
            continue
        if folder.name not in kept:
            found = _garbage([folder], f"another identity than the declared {next(iter(kept))}", name)
            yield replace(found, newest=max(found.newest, replaced))
            continue
        yield from _orphans(cache, folder / "parts", kept[folder.name])
        generations = [path for path in _entries(folder / "generations") if NUMBER.fullmatch(path.name)]
        for path in sorted(generations, key=lambda path: int(path.stem))[:-KEPT_GENERATIONS]:
            yield _garbage([path], "generation that newer ones cover")


def _made(cache: Cache, name: str) -> list[Column]:
    """The declared column, and what a redo that is under way makes of it. None if it is not declared."""
    declared = cache.column(name)
    if declared is None:
        return []
    made = redo.pending(cache, name)
    return [declared] if made is None else [declared, made]


def _orphans(cache: Cache, parts: Path, column: Column) -> Iterator[Garbage]:
    """Attempts in a column's folder that no commit record names."""
    committed = _attempts(cache, column)
    attempts: dict[str, list[Path]] = {}
    for path in _entries(parts):
        if not path.name.startswith(TEMPORARY) and path.suffix in (".zarr", ".tar", ".npz"):
            attempts.setdefault(path.stem, []).append(path)
    for stem, paths in attempts.items():
        if stem not in committed:
            yield _garbage(paths, "attempt that no commit record names", column.name)


def _named_by_now(cache: Cache, garbage: Garbage) -> bool:
    """True for an attempt that was committed, or an identity that was declared, after it was found."""
    if not garbage.column:
        return False
    path = garbage.paths[0]
    made = {Path(column_folder(column)).name: column for column in _made(cache, garbage.column)}
    if path.parent.name != "parts":
        return path.name in made
    part, _, attempt = path.stem.rpartition("-")
    column = made.get(path.parents[1].name)
    commit = cache.commit(column, part) if column is not None else None
    return commit is not None and commit.attempt == attempt


def _attempts(cache: Cache, column: Column) -> set[str]:
    """Stems, `<part>-<attempt>`, of all objects (the index is one) that a column's commit records name."""
    files = {item.name for commit in cache.commits(column).values() for item in commit.objects}
    tops = {file.split("/parts/", 1)[-1].split("/", 1)[0] for file in files}
    return {Path(top).stem for top in tops}


def _temporary(top: Path, gone: set[Path], *, deep: bool) -> Iterator[Garbage]:
    """Unfinished files, in a folder or below it; not those in folders that go as a whole."""
    for path in _entries(top):
        if path.name.startswith(TEMPORARY):
            yield _garbage([path], "left by a killed writer")
        elif deep and path.is_dir() and not path.is_symlink() and path not in gone:
            yield from _temporary(path, gone, deep=True)


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


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _garbage(paths: list[Path], why: str, column: str = "") -> Garbage:
    count, newest = 0, 0.0
    for path in paths:
        for folder, _, files in os.walk(path):
            newest = max(newest, os.lstat(folder).st_mtime)
            for name in files:
                status = os.lstat(Path(folder, name))
                count, newest = count + status.st_size, max(newest, status.st_mtime)
        if not path.is_dir():
            status = path.lstat()
            count, newest = count + status.st_size, max(newest, status.st_mtime)
    return Garbage(tuple(paths), why, count, newest, column)
