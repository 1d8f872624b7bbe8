"""The rows of one column, over all its committed parts: found by the extent index, read in place.

Rows are numbered over the parts in the order of their names. Nothing stands between the store and the batch:
a row is one scattered read into its place in the output (rows that lie close together share one where a
request is dear), several threads share a batch (reads and crc32c release the GIL), and each row is checked
against its crc32c when it is first touched.

A part's extent index is loaded when its first row is asked for. Memory: 13 bytes a row and field (17 if
ragged) and 20 a sample, of the parts touched; opening costs what the generation holds.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import Any

import google_crc32c
import numpy as np
import xxhash
from numpy.typing import NDArray

from data_tools.cache.extents import PartIndex
from data_tools.cache.fields import Column, Field
from data_tools.cache.generation import Generation, current
from data_tools.cache.manifest import NULL_PART, Cache, Part
from data_tools.errors import DataFault

BYTES_A_THREAD = 8 << 20
"A batch is shared out over threads in pieces of at least this size."
LARGEST_READ = 16 << 20
"Rows that lie close together are read at once up to this size."
CHECKED_AT_OPEN = 20_000
"So many objects are looked at when a cache is opened; those of a larger one when they are first read."

Read = tuple[int, int, list[Any], list[tuple[int, NDArray[np.uint8]]]]
"Part, byte in its object, buffers to fill, and the (row, bytes) to check afterwards."


@dataclass(frozen=True)
class _FieldRows:
    """Where the rows of one field lie; filled part by part."""

    field: Field
    objects: list[str]
    "By part."
    chunk_bytes: NDArray[np.int64]
    "By part; 0: the object's bytes are not interrupted."
    gap_bytes: NDArray[np.int64]
    "By part."
    offset: NDArray[np.int64]
    length: NDArray[np.int32]
    "Of the ragged dimension; empty for a fixed shape."
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
            length=np.empty(rows if field.ragged else 0, dtype=np.int32),
            crc32c=np.empty(rows, dtype=np.uint32),
            sound=np.zeros(rows, dtype=bool),
        )


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
        self._loading = Lock()
        self._num_threads = num_threads or self.store.concurrency
        self._pool = ThreadPoolExecutor(self._num_threads)
        if self.generation.object.size <= CHECKED_AT_OPEN:
            list(self._pool.map(self._check_sizes, range(len(self.names))))

    @property
    def null_row(self) -> int:
        """The row of the null condition."""
        if NULL_PART not in self.number:
            raise DataFault(f"{self._where(NULL_PART)}: the null condition is missing; run precompute again")
        return int(self.starts[self.number[NULL_PART]])

    def index(self, part: int) -> PartIndex:
        """The extent index of a part, by number; loaded and checked on first use."""
        with self._loading:
            found = self._index[part]
            if found is None:
                found = self._index[part] = self._load(part)
        return found

    def gather(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """See `CacheReader.gather`."""
        parts = np.searchsorted(self.starts, rows, side="right") - 1
        for part in np.unique(parts[~self._loaded[parts]]).tolist():
            self.index(part)
        batch: dict[str, NDArray[Any]] = {}
        for where in self._fields:
            field, lengths = where.field, np.ones(len(rows), dtype=np.int64)
            if field.ragged:
                batch[field.ragged] = lengths = where.length[rows].astype(np.int64)
                out = np.zeros(
                    (len(rows), int(lengths.max(initial=0)), *field.item_shape), dtype=field.storage
                )
            else:
                out = np.empty((len(rows), *field.item_shape), dtype=field.storage)
            if out.size:
                self._fill(where, rows, parts, lengths * field.item_bytes, out)
            batch[field.name] = out
        return batch

    def close(self) -> None:
        self._pool.shutdown()

    def _fill(
        self,
        where: _FieldRows,
        rows: NDArray[np.int64],
        parts: NDArray[np.int64],
        sizes: NDArray[np.int64],
        out: NDArray[Any],
    ) -> None:
        """Read each row into the beginning of its place in `out`, in several threads if that pays."""
        flat = out.reshape(len(rows), -1).view(np.uint8)
        reads = _reads(where, rows, parts, sizes, flat)
        pieces = max(1, int(sizes.sum()) // BYTES_A_THREAD)
        if self.store.coalesce_bytes:  # a request takes long: all at once, and as few as can be
            reads = _coalesced(reads, self.store.coalesce_bytes)
            pieces = len(reads)
        pieces = min(pieces, self._num_threads, len(reads))
        if pieces == 1:
            self._read(where, reads)
            return
        bounds = np.linspace(0, len(reads), pieces + 1).astype(int).tolist()
        shares = [reads[start:stop] for start, stop in pairwise(bounds)]
        list(self._pool.map(self._read, [where] * pieces, shares))

    def _read(self, where: _FieldRows, reads: list[Read]) -> None:
        read_into, objects, crc32c, sound = self.store.read_into, where.objects, where.crc32c, where.sound
        for part, offset, buffers, rows in reads:
            try:
                count = read_into(objects[part], offset, buffers)
            except FileNotFoundError:
                raise self._damaged(part, f"{objects[part]} is missing") from None
            if count != sum(map(len, buffers)):
                raise self._damaged(
                    part, f"{where.field.name} ends before row {rows[-1][0] - self.starts[part]}"
                )
            for row, data in rows:
                if not sound[row]:
                    if google_crc32c.value(data) != crc32c[row]:
                        number = row - self.starts[part]
                        raise self._damaged(part, f"{where.field.name}: crc32c of row {number} differs")
                    sound[row] = not self.paranoid

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
            if where.field.ragged:
                where.length[rows] = extents.shape[:, 0]
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
        repair = "redo it with: precompute --repair and the options this cache was made with"
        return DataFault(f"{self._where(self.names[part])}: {what}; {repair}")

    def _where(self, part: str) -> str:
        return f"--cache: {self.store}: column {self.column.name}, {part}"


def _reads(
    where: _FieldRows,
    rows: NDArray[np.int64],
    parts: NDArray[np.int64],
    sizes: NDArray[np.int64],
    flat: NDArray[np.uint8],
) -> list[Read]:
    """One read a row, scattered around the gaps between chunks where the row runs over any."""
    chunk, gap, offsets = where.chunk_bytes[parts], where.gap_bytes[parts], where.offset[rows]
    room = chunk - offsets % np.maximum(chunk + gap, 1)
    reads: list[Read] = []
    whole = ((chunk == 0) | (sizes <= room)).tolist()
    items = zip(flat, rows.tolist(), parts.tolist(), sizes.tolist(), offsets.tolist(), whole)
    for number, (place, row, part, size, offset, unbroken) in enumerate(items):
        data = place[:size]
        buffers = [data]
        if not unbroken:
            buffers = _around_gaps(data, int(room[number]), int(chunk[number]), int(gap[number]))
        reads.append((part, offset, buffers, [(row, data)]))
    return reads


def _around_gaps(data: NDArray[np.uint8], room: int, chunk: int, gap: int) -> list[Any]:
    """Buffers for one read of a row that runs over the end of a chunk, `room` bytes further."""
    buffers: list[Any] = [data[:room]]
    for start in range(room, len(data), chunk):
        buffers += [bytearray(gap), data[start : start + chunk]]
    return buffers


def _coalesced(reads: list[Read], most_between: int) -> list[Read]:
    """Reads of one object at most so many bytes apart, as one; what lies between is read and dropped."""
    merged: list[Read] = []
    end = 0
    for part, offset, buffers, rows in sorted(reads, key=lambda read: read[:2]):
        size = sum(map(len, buffers))
        if merged and merged[-1][0] == part:
            between, start = offset - end, merged[-1][1]
            if 0 <= between <= most_between and offset + size - start <= LARGEST_READ:
                merged[-1][2].extend([bytearray(between)] * bool(between) + buffers)
                merged[-1][3].extend(rows)
                end = offset + size
                continue
        merged.append((part, offset, list(buffers), list(rows)))
        end = offset + size
    return merged
