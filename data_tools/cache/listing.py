"""A source as it is listed now, compared with the plan of a cache, in bounded memory.

The planned samples go into a temporary file by key, and the source is gone through once. A file whose size,
time of change and place are as before is taken for unchanged; any other is read, in threads, and its hash
decides. Samples that are new or have changed go to a second temporary file, in the source's order, until the
next plan is written. Memory: a byte for each planned sample, and a few batches.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import MISSING, dataclass, field, fields, replace
from itertools import islice
from typing import Any, TextIO, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray
from tqdm import tqdm

from data_tools.cache import changes
from data_tools.cache.changes import Changes, Known
from data_tools.cache.manifest import Cache, Part, Plan, latest_plan_number
from data_tools.cache.store import Store
from data_tools.errors import UserError
from data_tools.sources import Sample, Source, Unusable
from data_tools.sources.keys import Names

T = TypeVar("T")
DEFAULT_PART_SIZE = 2048
BATCH = 1024
"Samples that are looked up, and read where they must be, together."
EMPTY = {about.name: about.default for about in fields(Sample) if about.default is not MISSING}
"Fields of a sample that its line leaves out where they have this value."


@dataclass
class Listing:
    """What the source holds, what the plan says of it, and what has changed. To be closed."""

    source: Source
    plan: Plan | None
    part_size: int
    changes: Changes = field(default_factory=Changes)
    samples: int = 0
    "Listed now."
    captions: int = 0
    captioned: int = 0
    "Samples with a caption."
    marks: list[NDArray[np.uint8]] = field(default_factory=list)
    "Of each part of the plan: a mark for each position (`changes`)."
    has_moved: bool = False
    "Some samples of the plan are elsewhere in the source than their table says."
    _fresh: TextIO = field(default_factory=lambda: _temporary())
    _moved: Names = field(default_factory=Names)

    def close(self) -> None:
        self._fresh.close()
        self._moved.close()

    @property
    def parts(self) -> list[Part]:
        """The plan's parts that still have samples, with what is retired now."""
        planned = self.plan.parts if self.plan is not None else ()
        left = (changes.retire(part, marks) for part, marks in zip(planned, self.marks))
        return [part for part in left if part is not None]

    @property
    def next_part(self) -> int:
        """Number of the first part to add."""
        return self.plan.next_part if self.plan is not None else 0

    def fresh(self) -> Iterator[list[Sample]]:
        """The samples of each part to add, in the source's order; one part in memory."""
        self._fresh.seek(0)
        return chunks((sample(json.loads(line)) for line in self._fresh), self.part_size)

    def moved(self, planned: Iterable[Sample]) -> dict[str, dict[str, Any]]:
        """Key → `place` and `source`, of those planned samples that the source has elsewhere now."""
        notes = {each.key: self._moved.note(each.key) for each in planned}
        return {key: json.loads(note) for key, note in notes.items() if note is not None}

    def take(self, known: Known | None, listed: Sample) -> None:
        """The next sample of the source, with the hash of its file unless it is new."""
        self.samples += 1
        self.captions += len(listed.captions)
        self.captioned += bool(listed.captions)
        if known is None:
            self._add(changes.NEW, listed)
            return
        marks = self.marks[known.part]
        if marks[known.position] != changes.UNSEEN:
            raise UserError(f"--data: the key {listed.key!r} comes twice; rename one")
        kind = changes.compared(known, listed)
        marks[known.position] = changes.SAME if kind == changes.KEPT else changes.REPLACED
        if kind != changes.KEPT:
            assert self.plan is not None
            part = self.plan.parts[known.part].name
            self._add(kind, changes.replacing(listed, kind, part, known.position))
            return
        self.changes.add(kind, listed.key)
        if (known.place, known.source) != (listed.place, listed.source):
            self.has_moved = True
            self._moved.add(listed.key, json.dumps({"place": listed.place, "source": listed.source}))

    def end(self, cache: Cache) -> None:
        """Nothing more is listed: what has not been seen is no longer there."""
        for part, marks in zip(self.plan.parts if self.plan is not None else (), self.marks):
            removed = np.flatnonzero(marks == changes.UNSEEN).tolist()
            shown = removed[: max(0, changes.EXAMPLES - self.changes.counts[changes.REMOVED])]
            table = cache.table(part) if shown else []
            for position in shown:
                self.changes.add(changes.REMOVED, table[position]["key"])
            self.changes.counts[changes.REMOVED] += len(removed) - len(shown)

    def _add(self, kind: str, listed: Sample) -> None:
        self.changes.add(kind, listed.key)
        try:
            self._fresh.write(f"{line(listed)}\n")
        except OSError as err:
            raise UserError(f"TMPDIR: {err.strerror}; set TMPDIR to a folder with more space") from None


def compare(store: Store, source: Source, part_size: int | None, *, rehash: bool = False) -> Listing:
    """Go through a source once; `part_size` None: as the cache has it, or 2048. Nothing is written.

    `rehash` reads every file that was there before. Raises `UserError` for another part size than the
    cache's, and what the source raises; `DataFault` for a damaged plan or sample table.
    """
    cache, plan = Cache(store), None
    if store.size("cache.json") is not None and latest_plan_number(store):
        cache = Cache.open(store)
        plan = cache.latest_plan()
        if part_size not in (None, plan.part_size):
            raise UserError(f"--part-size: found {part_size}, but {store.url} has {plan.part_size}")
    size = part_size if plan is None else plan.part_size
    listing = Listing(source, plan, size or DEFAULT_PART_SIZE)
    try:
        with closing(Names()) as names, readers() as pool:
            total = _index(cache, listing, names)
            bar = tqdm(source, total=total, desc="compare", unit=" samples", leave=False, delay=1)
            for batch in chunks(bar, BATCH):
                notes = (names.note(listed.key) for listed in batch)
                known = [Known.load(note) if note is not None else None for note in notes]
                for old, listed in zip(known, _seen(source, known, batch, rehash, pool)):
                    listing.take(old, listed)
        listing.end(cache)
    except BaseException:
        listing.close()
        raise
    return listing


def _index(cache: Cache, listing: Listing, names: Names) -> int | None:
    """Enter the planned samples; how many there are, None without a plan."""
    if listing.plan is None:
        return None
    for number, part in enumerate(listing.plan.parts):
        marks = np.where(part.is_live(), changes.UNSEEN, changes.RETIRED).astype(np.uint8)
        listing.marks.append(marks)
        for position, row in enumerate(cache.table(part)):
            if marks[position] == changes.UNSEEN:
                names.add(row["key"], Known.of(number, position, sample(row)).dump())
    return sum(part.live for part in listing.plan.parts)


def _seen(
    source: Source,
    known: list[Known | None],
    batch: list[Sample],
    rehash: bool,
    pool: ThreadPoolExecutor,
) -> Iterator[Sample]:
    """The samples of a batch that were known before with the hash that their file has now."""
    read = [changes.wants_hash(old, listed, rehash=rehash) for old, listed in zip(known, batch)]
    hashed = pool.map(lambda listed: with_hash(source, listed), [s for s, r in zip(batch, read) if r])
    for old, listed, is_read in zip(known, batch, read):
        if is_read:
            yield next(hashed)
        elif old is None or listed.problem:
            yield listed
        else:
            yield replace(listed, xxh3_128=old.picture)


def _temporary() -> TextIO:
    """A file without a name, which goes when it is closed."""
    return tempfile.TemporaryFile("w+", encoding="utf-8")


def with_hash(source: Source, listed: Sample) -> Sample:
    """A sample with the hash of its picture's file; as it is if that cannot be read."""
    if listed.problem:
        return listed
    try:
        return replace(listed, xxh3_128=xxhash.xxh3_128_hexdigest(source.read(listed)))
    except Unusable:
        return listed


def readers() -> ThreadPoolExecutor:
    """Threads that read and hash files."""
    return ThreadPoolExecutor(min(16, 4 * (os.cpu_count() or 1)))


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` items, and of what is left."""
    rest = iter(items)
    return iter(lambda: list(islice(rest, size)), [])


def line(listed: Sample) -> str:
    """A line of a sample table."""
    values = {name: value for name, value in vars(listed).items() if value != EMPTY.get(name)}
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def sample(row: dict[str, Any]) -> Sample:
    """What a line of a sample table says."""
    return Sample(**{**row, "captions": tuple(row["captions"])})
