"""The rows of one column, over all its committed parts: found by the extent index, read in place.

Rows are numbered over the parts in the order of their names. Nothing stands between the store and the batch:
a row is one scattered read into its place in the batch (`data_tools.cache.reads`), checked against its crc32c
when it is first touched. Several threads share a batch where reads wait for a disk or a network; from the
page cache one is faster, as Python lets only one of them go on between two reads.

A part's extent index is loaded when its first row is asked for. Memory: 13 bytes a row and field (4 more for
each dimension if they vary) and 20 a sample, of the parts touched; opening costs what the generation holds.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import google_crc32c
import numpy as np
import xxhash
from numpy.typing import NDArray

from data_tools.cache.cells import Cells
from data_tools.cache.extents import PartIndex
from data_tools.cache.fields import Column, Field
from data_tools.cache.generation import Generation, current
from data_tools.cache.manifest import NULL_PART, REPAIR, Cache, Part
from data_tools.cache.reads import Bytes, Ids, Read, coalesced, page_aligned, row_places, row_reads
from data_tools.errors import DataFault

BYTES_A_THREAD = 8 << 20
"A batch from the page cache is shared out over threads in pieces of at least this size."
SECONDS_A_READ, SECONDS_A_BYTE = 5e-5, 1e-9
"A batch that takes longer waits for a disk or a network."
SLOW_BATCHES, SHARED_BATCHES = 2, 64
"After so many such batches in turn, all threads share so many; then one thread tries alone again."
MANY_PARTS = 100
"So many parts are looked at in several threads, whatever the store."
CHECKED_AT_OPEN = 20_000
"So many objects are looked at when a cache is opened; those of a larger one when they are first read."

Empty = Callable[[tuple[int, ...], np.dtype[Any]], NDArray[Any]]
"Makes the arrays of a batch: (shape, dtype) → uninitialised array."


@dataclass(frozen=True)
class _FieldRows:
    """Where the rows of one field lie; filled part by part."""

    field: Field
    objects: list[str]
    "By part."
    chunk_bytes: Ids
    "By part; 0: the object's bytes are not interrupted."
    gap_bytes: Ids
    "By part."
    offset: Ids
    shape: NDArray[np.int32]
    "Of each row; empty if all have the field's."
    crc32c: NDArray[np.uint32]
    sound: NDArray[np.bool_]
    "Rows whose crc32c has been checked."

    @classmethod
    def unloaded(cls, field: Field, objects: list[bytes], rows: int) -> "_FieldRows":
        parts = len(objects)
        return cls(
            field=field,
            objects=[name.decode() for name in objects],
            chunk_bytes=np.zeros(parts, dtype=np.int64),
            gap_bytes=np.zeros(parts, dtype=np.int64),
            offset=np.empty(rows, dtype=np.int64),  # empty: pages that no part fills are never touched
            shape=np.empty((rows if field.varies else 0, len(field.shape)), dtype=np.int32),
            crc32c=np.empty(rows, dtype=np.uint32),
            sound=np.zeros(rows, dtype=bool),
        )

    def sizes(self, rows: Ids) -> Ids:
        """Bytes of each row: (B,)."""
        items = np.ones(len(rows), dtype=np.int64)
        if self.field.varies:
            varying = self.shape[rows, : len(self.field.shape) - len(self.field.item_shape)]
            items = varying.prod(axis=1, dtype=np.int64)
        return items * self.field.item_bytes

    def batch_shape(self, rows: Ids) -> tuple[int, ...]:
        """Of the batch of these rows. Raises `ValueError` if their shapes make no batch."""
        field = self.field
        if not field.varies or not len(rows):
            return (len(rows), *(dim if isinstance(dim, int) else 0 for dim in field.shape))
        shapes = self.shape[rows]
        if field.bucketed and (shapes != shapes[0]).any():
            found = ", ".join(map(str, np.unique(shapes, axis=0).tolist()))
            raise ValueError(f"{field.name}: rows of shapes {found} make no batch")
        return (len(rows), *shapes.max(axis=0).tolist())


class ColumnRecords:
    """Raises `DataFault` for a part that is not what was committed."""

    def __init__(
        self,
        cache: Cache,
        column: Column,
        plan: list[Part],
        *,
        num_threads: int | None = None,
        paranoid: bool = False,
        cells: Cells | None = None,
    ) -> None:
        self.store, self.column, self.paranoid = cache.store, column, paranoid
        self.generation: Generation = current(cache, column, plan)
        self.names = [name.decode() for name in self.generation.part.tolist()]
        self.number = {name: number for number, name in enumerate(self.names)}
        self.starts = np.concatenate([[0], np.cumsum(self.generation.rows)]).astype(np.int64)
        self._fields = [
            _FieldRows.unloaded(field, self.generation.object[:, i].tolist(), int(self.starts[-1]))
            for i, field in enumerate(column.fields)
        ]
        self._index: list[PartIndex | None] = [None] * len(self.names)
        self._loaded = np.zeros(len(self.names), dtype=bool)
        self._cells = cells
        self._slow = self._shared = 0
        "Batches in turn that waited; batches that all threads still share."
        self._num_threads = num_threads or self.store.concurrency
        self._pool = ThreadPoolExecutor(self._num_threads)
        checked = self.generation.object.size <= CHECKED_AT_OPEN
        self._each(self._check_sizes, range(len(self.names)) if checked else ())

    @property
    def null_row(self) -> int:
        """The row of the null condition."""
        if NULL_PART not in self.number:
            raise DataFault(f"{self._where(NULL_PART)}: the null condition is missing; run precompute again")
        return int(self.starts[self.number[NULL_PART]])

    def index(self, part: int) -> PartIndex:
        """The extent index of a part, by number; loaded and checked on first use."""
        found = self._index[part]
        if found is None:  # another thread may be loading it, too: both write the same
            found = self._index[part] = self._load(part)
        return found

    def load(self, parts: Iterable[int]) -> None:
        """The extent indices of some parts, many at once."""
        self._each(self.index, [part for part in parts if not self._loaded[part]])

    def shapes(self, rows: Ids) -> NDArray[np.int32]:
        """Shape of each row of the first field whose shape varies, without reading it: (B, dimensions)."""
        self._parts_of(rows)
        return next(where.shape for where in self._fields if where.field.varies)[rows]

    def gather(self, rows: Ids, empty: Empty = page_aligned) -> dict[str, NDArray[Any]]:
        """See `CacheReader.gather`."""
        parts = self._parts_of(rows)
        batch: dict[str, NDArray[Any]] = {}
        for where in self._fields:
            field, sizes = where.field, where.sizes(rows)
            out = empty(where.batch_shape(rows), field.storage)
            if field.ragged:
                batch[field.ragged] = where.shape[rows, 0].astype(np.int64)
            if out.size:
                places = row_places(out.reshape(len(rows), -1).view(np.uint8), sizes)
                if self._cells is not None and self.store.coalesce_bytes:
                    self._copy(where, self._cells, rows, parts, places)
                else:
                    self._fill(where, rows, parts, places)
            batch[field.name] = out
        return batch

    def close(self) -> None:
        self._pool.shutdown()

    def _each(self, task: Callable[[int], Any], parts: Sequence[int]) -> None:
        """In threads where a request takes long, or there are many."""
        pays = len(parts) > MANY_PARTS or (self.store.coalesce_bytes and len(parts) > 1)
        list(self._pool.map(task, parts) if pays else map(task, parts))

    def _parts_of(self, rows: Ids) -> Ids:
        """The part of each row, every one of them with its index loaded."""
        parts: Ids = np.searchsorted(self.starts, rows, side="right") - 1
        self.load(np.unique(parts[~self._loaded[parts]]).tolist())
        return parts

    def _copy(self, where: _FieldRows, cells: Cells, rows: Ids, parts: Ids, places: list[Bytes]) -> None:
        """Rows out of runs of neighbours in memory; runs that are not there are fetched first."""
        run, within = np.divmod(rows - self.starts[parts], cells.rows)
        keys = [(where.field.name, part, n) for part, n in zip(parts.tolist(), run.tolist())]
        found = {key: cells.get(key) for key in dict.fromkeys(keys)}
        missing = [key for key, views in found.items() if views is None]
        wanted = [self._run(part, number, cells.rows) for _, part, number in missing]
        fetched = np.concatenate(wanted) if wanted else np.zeros(0, dtype=np.int64)
        buffers = []
        for run_rows in wanted:
            ends = np.cumsum(where.sizes(run_rows))
            buffers.append(np.split(np.empty(ends[-1], dtype=np.uint8), ends[:-1]))
        of_part = np.array([part for (_, part, _), r in zip(missing, wanted) for _ in r], dtype=np.int64)
        self._fill(where, fetched, of_part, [view for views in buffers for view in views])
        for key, views in zip(missing, buffers):
            found[key] = views
            cells.put(key, views)
        for key, row, place in zip(keys, within.tolist(), places):
            kept = found[key]
            assert kept is not None
            place[:] = kept[row]

    def _run(self, part: int, number: int, length: int) -> Ids:
        """The rows of the `number`th run of neighbours in a part."""
        start, stop = self.starts[part : part + 2].tolist()
        first = start + number * length
        return np.arange(first, min(first + length, stop), dtype=np.int64)

    def _fill(self, where: _FieldRows, rows: Ids, parts: Ids, places: list[Bytes]) -> None:
        """Read each row into its place and check it, in several threads if that pays."""
        reads = row_reads(parts, where.offset[rows], places, where.chunk_bytes[parts], where.gap_bytes[parts])
        if self.store.coalesce_bytes:  # a request takes long: all at once, and as few as can be
            merged = coalesced(reads, self.store.coalesce_bytes)
            list(self._pool.map(lambda read: self._read(where, [read]), merged))
            reads = []
        size, started = sum(map(len, places)), time.perf_counter()
        most = self._num_threads if (shared := self._shared > 0) else size // BYTES_A_THREAD
        pieces = max(1, min(most, self._num_threads, len(rows)))
        bounds = [len(rows) * i // pieces for i in range(pieces + 1)]

        def piece(bound: tuple[int, int]) -> None:
            span = slice(*bound)
            self._read(where, reads[span])
            self._check(where, rows[span], parts[span], places[span])

        first, *others = pairwise(bounds)
        rest = [self._pool.submit(piece, bound) for bound in others]
        piece(first)
        for future in rest:
            future.result()
        if shared:
            self._shared -= 1
            return
        waited = time.perf_counter() - started > SECONDS_A_READ * len(rows) + SECONDS_A_BYTE * size
        self._slow = self._slow + 1 if waited else 0
        if self._slow >= SLOW_BATCHES:
            self._slow, self._shared = SLOW_BATCHES - 1, SHARED_BATCHES

    def _read(self, where: _FieldRows, reads: Sequence[Read]) -> None:
        read_into, objects = self.store.read_into, where.objects
        for part, offset, buffers in reads:
            try:
                count = read_into(objects[part], offset, buffers)
            except FileNotFoundError:
                raise self._damaged(part, f"{objects[part]} is missing") from None
            if count != (len(buffers[0]) if len(buffers) == 1 else sum(map(len, buffers))):
                what = f"{where.field.name}: {objects[part]} ends before what was committed"
                raise self._damaged(part, what)

    def _check(self, where: _FieldRows, rows: Ids, parts: Ids, places: list[Bytes]) -> None:
        """Each row against its crc32c, unless it has been checked before."""
        new = np.arange(len(rows)) if self.paranoid else np.flatnonzero(~where.sound[rows])
        found = np.array([google_crc32c.value(places[i]) for i in new.tolist()], dtype=np.uint32)
        wrong = new[found != where.crc32c[rows[new]]]
        for i in wrong[:1].tolist():
            part, number = int(parts[i]), int(rows[i] - self.starts[parts[i]])
            raise self._damaged(part, f"{where.field.name}: crc32c of row {number} differs")
        where.sound[rows[new]] = True

    def _load(self, part: int) -> PartIndex:
        self._check_sizes(part)
        name = self.generation.index[part].decode()
        try:
            data = self.store.read(name)
            if xxhash.xxh3_128_hexdigest(data).encode() != self.generation.index_hash[part]:
                raise ValueError("has changed bytes (xxh3-128 differs)")
            index = PartIndex.load(data)
        except (ValueError, FileNotFoundError) as err:
            raise self._damaged(part, f"{name}: {err}") from None
        rows = slice(int(self.starts[part]), int(self.starts[part + 1]))
        for where in self._fields:
            extents = index.fields[where.field.name]
            where.chunk_bytes[part], where.gap_bytes[part] = extents.chunk_bytes, extents.gap_bytes
            where.offset[rows], where.crc32c[rows] = extents.offset, extents.crc32c
            if where.field.varies:
                where.shape[rows] = extents.shape
        self._loaded[part] = True
        return PartIndex(index.sample_index, index.key_hash, index.row_offsets, {})

    def _check_sizes(self, part: int) -> None:
        sizes = self.generation.object_size[part].tolist()
        for where, wanted in zip(self._fields, sizes):
            name = where.objects[part]
            found = self.store.size(name) or 0 if wanted else 0
            if found != wanted:
                raise self._damaged(part, f"{name} is missing or short: {found} bytes, wanted {wanted}")

    def _damaged(self, part: int, what: str) -> DataFault:
        if self.store.size("cache.json") is None:  # unmounted or moved: a repair would make it anew
            return DataFault(f"--cache: {self.store}: the whole cache is not there any more")
        return DataFault(f"{self._where(self.names[part])}: {what}; redo it with: {REPAIR}")

    def _where(self, part: str) -> str:
        return f"--cache: {self.store}: column {self.column.name}, {part}"
