"""A source as it is listed now, compared with the plan of a cache, in bounded memory.

The planned samples go into a temporary file by key, and the source is gone through once. A file whose size,
time of change and place are as before is taken for unchanged; any other is read, in threads, and its hash
decides. Samples that are new or have changed go to a second temporary file, in the source's order, until the
next plan is written. Memory: a byte for each planned sample, the names of folders, tars and tables that could
not be listed, and a few batches.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import MISSING, dataclass, field, fields, replace
from itertools import islice
from typing import Any, TextIO, TypeVar

import numpy as np
import xxhash
from numpy.typing import NDArray
from tqdm import tqdm

from data_tools.cache import changes, touched
from data_tools.cache.changes import Changes, Known, Seen
from data_tools.cache.manifest import Cache, Part, Plan, latest_plan_number
from data_tools.cache.store import Store
from data_tools.cache.unlisted import Unlisted
from data_tools.errors import UserError
from data_tools.sources import Sample, Source, Unusable
from data_tools.sources.keys import Names

T = TypeVar("T")
DEFAULT_PART_SIZE = 2048
BATCH = 1024
"Samples that are looked up, and read where they must be, together."
EMPTY = {about.name: about.default for about in fields(Sample) if about.default is not MISSING}
"Fields of a sample that its line leaves out where they have this value."
NEVER_STORED = {"unlisted": ""}
"Fields that say something of one listing only."
Retry = Mapping[tuple[str, str], Sequence[str]]
"(part, key) → columns that have rejected a sample and are to try it again."


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
    caption_problem: str = ""
    "The first."
    marks: list[NDArray[np.uint8]] = field(default_factory=list)
    "Of each part of the plan: a mark for each position (`changes`)."
    has_moved: bool = False
    "Some samples of the plan are elsewhere in the source than their table says."
    retry: Retry = field(default_factory=dict)
    "Samples that count as changed though they are as they were."
    unlisted: Unlisted = field(default_factory=Unlisted)
    "What could not be looked at."
    _touched: set[int] = field(default_factory=set)
    "Numbers of parts with samples that the source has otherwise than it had them when it was last compared."
    _fresh: TextIO = field(default_factory=lambda: _temporary())
    _seen: Names = field(default_factory=Names)
    "Samples that are as they were, but touched now, or elsewhere than their table says; the note: a `Seen`."

    def close(self) -> None:
        self._fresh.close()
        self._seen.close()

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
        found = {}
        for each in planned:
            seen = self._seen_now(each.key)
            if seen is not None and (seen.place, seen.source) != (each.place, each.source):
                found[each.key] = {"place": seen.place, "source": seen.source}
        return found

    def touched(self, cache: Cache) -> Iterator[tuple[Part, int, dict[str, Seen]]]:
        """Parts of which a new record is to be written (`data_tools.cache.touched`): its number, and key →
        how the source has those samples now that are as they were, but not as their table lists them."""
        numbers = touched.newest(cache.store) if self._touched else {}
        for number in sorted(self._touched):
            assert self.plan is not None
            part, found = self.plan.parts[number], {}
            newest = numbers.get(part.name, 0)
            before = touched.read(cache.store, part.name, newest)
            for row, mark in zip(cache.table(part), self.marks[number]):
                seen = self._seen_now(row["key"]) or before.get(row["key"])
                if mark == changes.SAME and seen is not None and seen != Seen.of(sample(row)):
                    found[row["key"]] = seen
            if found != before:
                yield part, newest + 1, found

    def take(self, known: Known | None, listed: Sample) -> None:
        """The next sample of the source; one that was known before as it is to be compared."""
        self._count(listed)
        if listed.unlisted and listed.problem:
            self.unlisted.places.add(listed.unlisted)
        if known is None:
            self._add(changes.NEW, listed)
            return
        marks = self.marks[known.part]
        if marks[known.position] != changes.UNSEEN:
            raise UserError(f"--data: the key {listed.key!r} comes twice; rename one")
        assert self.plan is not None
        part = self.plan.parts[known.part].name
        kind = changes.compared(known, listed)
        again = changes.worth_retrying(self.retry.get((part, listed.key), ()), listed)
        if kind == changes.KEPT and not again:
            marks[known.position] = changes.SAME
            self._keep(known, listed.key, Seen.of(listed))
            if listed.unlisted and not listed.problem:
                self.unlisted.keep(listed.place)
            return
        kind = changes.RETRIED if kind == changes.KEPT else kind
        marks[known.position] = changes.REPLACED
        self._add(kind, changes.replacing(listed, kind, part, known.position), again)

    def end(self, cache: Cache, known: Names) -> None:
        """Nothing more is listed: what has not been seen is no longer there, unless its place could not be
        looked at. `known`: the planned samples as they were entered."""
        for part, marks in zip(self.plan.parts if self.plan is not None else (), self.marks):
            removed = np.flatnonzero(marks == changes.UNSEEN).tolist()
            if not self.unlisted.places and self.changes.counts[changes.REMOVED] >= changes.EXAMPLES:
                self.changes.counts[changes.REMOVED] += len(removed)
                continue
            table = cache.table(part) if removed else []
            for position in removed:
                planned = sample(table[position])
                was = Known.load(known.note(planned.key) or "")
                if self.unlisted.holds(was.seen.place):
                    marks[position] = changes.SAME
                    self._count(planned)
                    self._keep(was, planned.key, was.seen)
                else:
                    self.changes.add(changes.REMOVED, planned.key)

    def _count(self, listed: Sample) -> None:
        self.samples += 1
        self.captions += len(listed.captions)
        self.captioned += bool(listed.captions)
        self.caption_problem = self.caption_problem or listed.caption_problem

    def _keep(self, known: Known, key: str, seen: Seen) -> None:
        self.changes.add(changes.KEPT, key)
        has_moved = known.has_moved or seen[2:] != known.seen[2:]
        if has_moved or seen != known.seen:
            self._seen.add(key, json.dumps(seen))
        if seen != known.seen:
            self._touched.add(known.part)
        self.has_moved |= has_moved

    def _seen_now(self, key: str) -> Seen | None:
        note = self._seen.note(key)
        return None if note is None else Seen(*json.loads(note))

    def _add(self, kind: str, listed: Sample, again: Sequence[str] = ()) -> None:
        if kind == changes.RETRIED:
            self.changes.retry(listed.key, again)
        else:
            self.changes.add(kind, listed.key)
        try:
            self._fresh.write(f"{line(listed)}\n")
        except OSError as err:
            raise UserError(f"TMPDIR: {err.strerror}; set TMPDIR to a folder with more space") from None


def compare(
    store: Store, source: Source, part_size: int | None, *, rehash: bool = False, retry: Retry | None = None
) -> Listing:
    """Go through a source once; `part_size` None: as the cache has it, or 2048. Nothing is written.

    `rehash` reads every file that was there before; samples to `retry` count as changed. Raises `UserError`
    for another part size than the cache's, and what the source raises; `DataFault` for a damaged plan or
    sample table.
    """
    cache, plan = Cache(store), None
    if store.size("cache.json") is not None and latest_plan_number(store):
        cache = Cache.open(store)
        plan = cache.latest_plan()
        if part_size not in (None, plan.part_size):
            raise UserError(f"--part-size: found {part_size}, but {store.url} has {plan.part_size}")
    size = part_size if plan is None else plan.part_size
    listing = Listing(source, plan, size or DEFAULT_PART_SIZE, retry=retry or {})
    try:
        with closing(Names()) as names, readers() as pool:
            total = _index(cache, listing, names)
            bar = tqdm(source, total=total, desc="compare", unit=" samples", leave=False, delay=1)
            for batch in chunks(bar, BATCH):
                notes = (names.note(listed.key) for listed in batch)
                known = [Known.load(note) if note is not None else None for note in notes]
                for old, listed in zip(known, _seen(source, known, batch, rehash, pool)):
                    listing.take(old, listed)
            listing.end(cache, names)
    except BaseException:
        listing.close()
        raise
    return listing


def _index(cache: Cache, listing: Listing, names: Names) -> int | None:
    """Enter the planned samples; how many there are, None without a plan."""
    if listing.plan is None:
        return None
    records = touched.newest(cache.store)
    for number, part in enumerate(listing.plan.parts):
        seen = touched.read(cache.store, part.name, records.get(part.name, 0))
        marks = np.where(part.is_live(), changes.UNSEEN, changes.RETIRED).astype(np.uint8)
        listing.marks.append(marks)
        for position, row in enumerate(cache.table(part)):
            if marks[position] == changes.UNSEEN:
                known = Known.of(number, position, sample(row), seen.get(row["key"]))
                names.add(row["key"], known.dump())
    return sum(part.live for part in listing.plan.parts)


def _seen(
    source: Source,
    known: list[Known | None],
    batch: list[Sample],
    rehash: bool,
    pool: ThreadPoolExecutor,
) -> Iterator[Sample]:
    """The samples of a batch, those that were known before as they are to be compared."""
    read = [changes.wants_hash(old, listed, rehash=rehash) for old, listed in zip(known, batch)]
    hashed = pool.map(lambda listed: with_hash(source, listed), [s for s, r in zip(batch, read) if r])
    for old, listed, was_read in zip(known, batch, read):
        now = next(hashed) if was_read else listed
        yield now if old is None else changes.settled(old, now, was_read=was_read)


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
    kept = {**vars(listed), **NEVER_STORED}
    values = {name: value for name, value in kept.items() if value != EMPTY.get(name)}
    return json.dumps(values, ensure_ascii=False, sort_keys=True)


def sample(row: dict[str, Any]) -> Sample:
    """What a line of a sample table says."""
    return Sample(**{**row, "captions": tuple(row["captions"])})
