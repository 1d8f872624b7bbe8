"""Samples of one or several caches into the parts of a new one: what `convert` and `merge` share.

The new cache's plan is made from the old ones' sample tables, as `precompute` makes it from a source, so both
commands resume as a precompute run does: a part that is committed is skipped, and racing processes are safe.
Columns are copied one after the other, parts in order. Memory: a part of an origin and one of the new cache.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from data_tools.cache.cast import cast
from data_tools.cache.fields import Column, Row
from data_tools.cache.generation import publish
from data_tools.cache.identity import differences
from data_tools.cache.listing import sample
from data_tools.cache.manifest import NULL_PART, PROMPTS, Cache, Commit, Part, sealed
from data_tools.cache.payload import PartPayload, part_fault
from data_tools.cache.rows import Container
from data_tools.cache.store import Store, local_folder
from data_tools.cache.verify import load_index
from data_tools.cache.writer import PartWriter
from data_tools.errors import DataFault, UserError
from data_tools.sources import Sample, Unusable

MARK = "conversion.json"
"Says of which caches, and how, a cache is the copy; written first."


@dataclass(frozen=True)
class Origin:
    """A cache to copy from, and which of its samples."""

    cache: Cache
    plan: list[Part]
    keep: NDArray[np.bool_]
    "(samples of the plan)"

    @classmethod
    def whole(cls, cache: Cache) -> "Origin":
        """All samples but those that are retired."""
        plan = cache.plan()
        return cls(cache, plan, np.concatenate([np.zeros(0, dtype=bool), *(part.is_live() for part in plan)]))

    def kept(self) -> Iterator[tuple[Part, NDArray[np.int64]]]:
        """Each part with the positions, in its sample table, of the samples to copy."""
        start = 0
        for part in self.plan:
            yield part, np.flatnonzero(self.keep[start : start + part.samples])
            start += part.samples


@dataclass(frozen=True)
class Copied:
    """What a copy did."""

    parts: int
    "Committed by this call."
    waiting: dict[str, int]
    "Column → parts whose samples the origins have not encoded yet."


@dataclass(frozen=True)
class _Run:
    """Consecutive samples of the new cache that come from one part."""

    origin: Origin
    part: Part
    positions: NDArray[np.int64]
    "In the part's sample table."
    start: int
    "Number of the first one in the new cache."


@dataclass(frozen=True)
class TableSource:
    """The samples to copy, as a source to plan from."""

    origins: Sequence[Origin]

    @property
    def count(self) -> int:
        return sum(int(origin.keep.sum()) for origin in self.origins)

    def __iter__(self) -> Iterator[Sample]:
        for origin in self.origins:
            for part, positions in origin.kept():
                table = origin.cache.table(part)
                for position in positions.tolist():  # what they replaced is not copied
                    yield replace(sample(table[position]), picture_was="", captions_was="")

    def read(self, _: Sample) -> bytes:
        raise Unusable("a cache has no pictures")


def claim(store: Store, about: dict[str, Any], *, flag: str) -> None:
    """Make an empty or missing folder the place of this copy, or find that it is. Raises `UserError`."""
    if not store.names(""):
        store.create(MARK, sealed(about))
    if store.size(MARK) is None:
        raise UserError(
            f"{flag}: {store.url} is not empty and was not begun by this command; give a new folder"
        )
    try:
        found = json.loads(store.read(MARK))
    except ValueError:
        raise DataFault(f"{flag}: {store.url}: {MARK} is not readable JSON") from None
    wanted = json.loads(sealed(about))
    if not isinstance(found, dict):
        raise DataFault(f"{flag}: {store.url}: {MARK} is not a JSON object")
    if found != wanted:
        keys = "; ".join(line for line in differences(found, wanted) if not line.startswith("xxh3"))
        raise UserError(f"{flag}: {store.url} was begun by another command ({keys}); give a new folder")


def moved_model(model: dict[str, str], origin: Store, dest: Store) -> dict[str, str]:
    """A model hint as seen from the new cache (as `data_tools.models.record` would take it down there)."""
    old, new = local_folder(origin.url), local_folder(dest.url)
    if "path" not in model or old is None:  # on an object store: the bare name, which is all there is
        return model
    folder = (old.resolve() / model["path"]).resolve()
    return {**model, "path": folder.name if new is None else os.path.relpath(folder, new.resolve())}


def declare(dest: Cache, column: Column) -> None:
    """Declare a column of the copy. Raises `UserError` if the copy has another one of that name."""
    dest.declare(column)
    found = dest.column(column.name)
    if found is not None and found.identity != column.identity:
        keys = "; ".join(differences(found.identity, column.identity))
        raise UserError(f"DEST: {dest.store.url}: column {column.name} is there and differs ({keys})")


def copy_columns(
    origins: Sequence[Origin], dest: Cache, plan: list[Part], columns: list[Column], container: Container
) -> Copied:
    """Copy what `dest` lacks of the columns declared in it. `plan` is its plan, of `TableSource(origins)`.

    Raises `DataFault` for a damaged origin, or for a value that the new dtype cannot hold.
    """
    done, waiting = 0, dict.fromkeys((column.name for column in columns), 0)
    runs = _runs(origins)
    total = sum(part.samples for part in plan) * len(columns)
    with tqdm(total=total, unit=" samples", desc="copy", delay=1) as bar:
        for column in columns:
            copier = _ColumnCopier(dest, column, container)
            done += sum(copier.whole(*found) for found in copier.beside_the_plan(origins))
            start = first = 0
            bar.set_postfix_str(column.name, refresh=False)
            for part in plan:
                while runs[first].start + len(runs[first].positions) <= start:
                    first += 1
                result = copier.part(part, _overlap(islice(runs, first, None), start, start + part.samples))
                waiting[column.name] += result is None
                done += bool(result)
                start += part.samples
                bar.update(part.samples)
            publish(dest, column, plan)
    return Copied(done, {name: count for name, count in waiting.items() if count})


class _ColumnCopier:
    """Copies parts of one column; keeps the part it read last, since the next one often begins in it."""

    def __init__(self, dest: Cache, column: Column, container: Container) -> None:
        self.dest, self.column, self.container = dest, column, container
        self._last: tuple[str, PartPayload, list[dict[str, Any]]] | None = None

    def source(self, origin: Origin) -> Column:
        """The column as the origin declares it."""
        column = origin.cache.column(self.column.name)
        assert column is not None, self.column.name
        return column

    def beside_the_plan(self, origins: Sequence[Origin]) -> Iterator[tuple[Origin, Commit]]:
        """The null condition of the first origin, and each set of prompts of the first that has it."""
        chosen = {NULL_PART: origins[0]} if self.column.has_null else {}
        for origin in origins:
            sets = (p for p in origin.cache.committed(self.source(origin)) if p.startswith(PROMPTS))
            chosen = {**dict.fromkeys(sorted(sets), origin), **chosen}
        for part, origin in chosen.items():
            if (commit := origin.cache.commit(self.source(origin), part)) is not None:
                yield origin, commit

    def whole(self, origin: Origin, commit: Commit) -> bool:
        """Copy a part beside the plan as it is; False if it is there."""
        if self.dest.commit(self.column, commit.part) is not None:
            return False
        payload = PartPayload.open(origin.cache, self.source(origin), commit)
        writer = PartWriter(self.dest.store, self.column, commit.part, container=self.container)
        writer.prompts = commit.prompts
        for number, key in enumerate(commit.prompts or ("",)):
            self._add(writer, number, key, payload, number)
        writer.commit()
        self._prove(commit.part, [payload.crc32c(number) for number in range(commit.samples)], payload.column)
        return True

    def part(self, part: Part, runs: list[_Run]) -> bool | None:
        """Copy one part; False if it is there, None if an origin has not encoded all of its samples."""
        if self.dest.commit(self.column, part.name) is not None:
            return False
        commits = [run.origin.cache.commit(self.source(run.origin), run.part.name) for run in runs]
        if any(commit is None for commit in commits):
            return None
        writer = PartWriter(self.dest.store, self.column, part.name, container=self.container)
        crcs: list[dict[str, list[int]]] = []
        number = 0
        for run, commit in zip(runs, commits):
            assert commit is not None
            crcs += self._fill(writer, run, commit, number)
            number += len(run.positions)
        assert number == part.samples, part.name
        writer.commit()
        self._prove(part.name, crcs, self.source(runs[0].origin))
        return True

    def _fill(self, writer: PartWriter, run: _Run, commit: Commit, number: int) -> list[dict[str, list[int]]]:
        """Rows and rejects of one run, numbered from `number` on; the crc32c of the rows."""
        payload, table = self._open(run.origin, run.part, commit)
        places = {index: place for place, index in enumerate(payload.index.sample_index.tolist())}
        rejects = {reject["key"]: reject["reason"] for reject in commit.rejects}
        crcs = []
        for count, position in enumerate(run.positions.tolist()):
            copied = sample(table[position])
            if position in places:
                place = places[position]
                self._add(writer, number + count, copied.key, payload, place)
                crcs.append(payload.crc32c(place))
            elif copied.key in rejects:
                writer.reject(copied, rejects[copied.key])
            else:
                what = f"sample {copied.key} is neither in it nor rejected"
                raise part_fault(run.origin.cache, self.column.name, run.part.name, what)
        writer.encode_seconds += commit.encode_seconds * len(run.positions) / run.part.samples
        return crcs

    def _open(self, origin: Origin, part: Part, commit: Commit) -> tuple[PartPayload, list[dict[str, Any]]]:
        name = f"{origin.cache.store.url}/{commit.index}"
        if self._last is None or self._last[0] != name:
            self._last = None  # let go of the old one first
            payload = PartPayload.open(origin.cache, self.source(origin), commit)
            self._last = (name, payload, origin.cache.table(part))
        return self._last[1:]

    def _add(self, writer: PartWriter, number: int, key: str, payload: PartPayload, place: int) -> None:
        """One sample's rows, in the new dtype. Raises `DataFault` naming it where that cannot be."""
        fields = list(zip(payload.column.fields, self.column.fields))
        rows = payload.rows(place)
        try:
            cast_rows: list[Row] = [
                {old.name: cast(row[old.name], old.dtype, new.dtype) for old, new in fields} for row in rows
            ]
            writer.add(number, key, cast_rows)
        except ValueError as err:
            where = f"{payload.cache.store.url}: column {self.column.name}, {payload.commit.part}"
            raise DataFault(f"{where}: sample {key or NULL_PART}: {err}") from None

    def _prove(self, part: str, wanted: list[dict[str, list[int]]], source: Column) -> None:
        """Where the dtype is the same, every committed row has the crc32c it had before."""
        if source.fields != self.column.fields:
            return
        commit = self.dest.commit(self.column, part)
        assert commit is not None, part
        index = load_index(self.dest.store, commit)
        for field in self.column.fields:
            before = [crc for sample in wanted for crc in sample[field.name]]
            if index.fields[field.name].crc32c.tolist() != before:
                what = f"{field.name}: rows differ from those of the source"
                raise part_fault(self.dest, self.column.name, part, what)


def _runs(origins: Sequence[Origin]) -> list[_Run]:
    runs, start = [], 0
    for origin in origins:
        for part, positions in origin.kept():
            if len(positions):
                runs.append(_Run(origin, part, positions, start))
                start += len(positions)
    return runs


def _overlap(runs: Iterable[_Run], begin: int, end: int) -> list[_Run]:
    """What of the runs falls on samples `begin` to `end - 1` of the new cache."""
    found = []
    for run in runs:
        if run.start >= end:
            break
        low, high = max(begin - run.start, 0), end - run.start
        if len(chosen := run.positions[low:high]):
            found.append(replace(run, positions=chosen, start=run.start + low))
    return found
