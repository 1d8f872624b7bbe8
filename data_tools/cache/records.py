"""The rows of one column, over all its committed parts: found by the extent index, read with `preadv`.

Rows are numbered over the parts in the order of their commit records. Nothing stands between the disk and
the batch: each row is one `preadv` into its place in the output, in a few threads (the call and the crc32c
release the GIL), and is checked against its crc32c when it is first touched. Memory: 13 bytes a row and
field, and 8 more for a ragged one.
"""

import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data_tools.cache.extents import PartIndex
from data_tools.cache.fields import Column, Field
from data_tools.cache.manifest import NULL_PART, Cache, Commit
from data_tools.cache.verify import load_index, size_faults
from data_tools.errors import DataFault

OPEN_FILES = 512
"Most files that one column keeps open."
BYTES_A_THREAD = 1 << 20
"A batch is shared out over threads in pieces of at least this size."


@dataclass(frozen=True)
class _FieldRows:
    """Where the rows of one field lie, over all parts."""

    field: Field
    objects: list[str]
    "By part."
    chunk_bytes: NDArray[np.int64]
    "By part; 0: the object's bytes are not interrupted."
    gap_bytes: NDArray[np.int64]
    "By part."
    offset: NDArray[np.int64]
    length: NDArray[np.int32] | None
    "Of the ragged dimension; None for a fixed shape."
    crc32c: NDArray[np.uint32]
    touched: NDArray[np.bool_]
    "Rows that have been found sound."


class ColumnRecords:
    """Raises `DataFault` for a part that is not what was committed."""

    def __init__(self, cache: Cache, column: Column, *, num_threads: int) -> None:
        self.store, self.column = cache.store, column
        self.commits = list(cache.commits(column).values())
        indices = [self._open(commit) for commit in self.commits]
        self.index = {commit.part: index for commit, index in zip(self.commits, indices)}
        rows = np.cumsum([0, *(commit.rows for commit in self.commits)])
        self.starts = rows.astype(np.int64)
        self.first_row = {commit.part: int(start) for commit, start in zip(self.commits, rows)}
        self._fields = [_field_rows(field, indices) for field in column.fields]
        self._files = _Files(self.store.root)
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None
        self._num_threads = num_threads

    @property
    def null_row(self) -> int:
        """The row of the null condition."""
        if NULL_PART not in self.first_row:
            raise DataFault(f"{self._where(NULL_PART)}: the null condition is missing; run precompute again")
        return self.first_row[NULL_PART]

    def gather(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """See `CacheReader.gather`."""
        parts = np.searchsorted(self.starts, rows, side="right") - 1
        batch: dict[str, NDArray[Any]] = {}
        for where in self._fields:
            field = where.field
            if where.length is not None:
                lengths = where.length[rows].astype(np.int64)
                shape: tuple[int, ...] = (int(lengths.max(initial=0)), *field.item_shape)
                batch[str(field.ragged)] = lengths
            else:
                lengths, shape = np.ones(len(rows), dtype=np.int64), field.item_shape
            make = np.zeros if field.ragged else np.empty  # what no row fills stays zero
            out = make((len(rows), *shape), dtype=field.storage)
            self._fill(where, rows, parts, lengths * field.item_bytes, out)
            batch[field.name] = out
        return batch

    def close(self) -> None:
        self._files.close()
        if self._pool is not None:
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
        if not out.size:
            return
        flat = out.reshape(len(rows), -1).view(np.uint8)

        def read(chosen: slice) -> None:
            self._read(where, rows[chosen], parts[chosen], sizes[chosen], flat[chosen])

        pieces = min(self._num_threads, max(1, int(sizes.sum()) // BYTES_A_THREAD))
        bounds = np.linspace(0, len(rows), pieces + 1).astype(int).tolist()
        slices = [slice(start, stop) for start, stop in pairwise(bounds)]
        if self._pool is None or pieces == 1:
            for chosen in slices:
                read(chosen)
        else:
            list(self._pool.map(read, slices))

    def _read(
        self,
        where: _FieldRows,
        rows: NDArray[np.int64],
        parts: NDArray[np.int64],
        sizes: NDArray[np.int64],
        flat: NDArray[np.uint8],
    ) -> None:
        chunk, gap, offsets = where.chunk_bytes[parts], where.gap_bytes[parts], where.offset[rows]
        room = chunk - offsets % np.maximum(chunk + gap, 1)
        whole = ((chunk == 0) | (sizes <= room)).tolist()
        crc32c, touched = where.crc32c[rows].tolist(), where.touched[rows].tolist()
        items = zip(flat, rows.tolist(), parts.tolist(), sizes.tolist(), offsets.tolist())
        for number, (place, row, part, size, offset) in enumerate(items):
            data = place[:size]
            buffers: list[Any] = [data]
            if not whole[number]:
                buffers = _around_gaps(data, int(room[number]), int(chunk[number]), int(gap[number]))
                size = sum(len(buffer) for buffer in buffers)
            file = self._file(where, part)  # held while it is read: an eviction elsewhere must not close it
            if os.preadv(file.fileno(), buffers, offset) != size:
                raise self._damaged(part, f"{where.field.name} ends before row {row - self.starts[part]}")
            if not touched[number]:
                if google_crc32c.value(data) != crc32c[number]:
                    number = row - self.starts[part]
                    raise self._damaged(part, f"{where.field.name}: crc32c of row {number} differs")
                where.touched[row] = True

    def _file(self, where: _FieldRows, part: int) -> FileIO:
        try:
            return self._files.get(where.objects[part])
        except FileNotFoundError:
            raise self._damaged(part, f"{where.objects[part]} is missing") from None

    def _open(self, commit: Commit) -> PartIndex:
        faults = size_faults(self.store, commit)
        if faults:
            raise self._fault(commit.part, faults[0])
        try:
            return load_index(self.store, commit)
        except ValueError as err:
            raise self._fault(commit.part, str(err)) from None

    def _damaged(self, part: int, what: str) -> DataFault:
        return self._fault(self.commits[part].part, what)

    def _fault(self, part: str, what: str) -> DataFault:
        repair = "redo it with: precompute --repair and the options this cache was made with"
        return DataFault(f"{self._where(part)}: {what}; {repair}")

    def _where(self, part: str) -> str:
        return f"--cache: {self.store.root}: column {self.column.name}, {part}"


def _field_rows(field: Field, indices: list[PartIndex]) -> _FieldRows:
    extents = [index.fields[field.name] for index in indices]
    offset = np.concatenate([np.zeros(0, np.int64), *(e.offset for e in extents)])
    return _FieldRows(
        field=field,
        objects=[e.object for e in extents],
        chunk_bytes=np.array([e.chunk_bytes for e in extents], dtype=np.int64),
        gap_bytes=np.array([e.gap_bytes for e in extents], dtype=np.int64),
        offset=offset,
        length=np.concatenate([np.zeros(0, np.int32), *(e.shape[:, 0] for e in extents)])
        if field.ragged
        else None,
        crc32c=np.concatenate([np.zeros(0, np.uint32), *(e.crc32c for e in extents)]),
        touched=np.zeros(len(offset), dtype=bool),
    )


def _around_gaps(data: NDArray[np.uint8], room: int, chunk: int, gap: int) -> list[Any]:
    """Buffers for one scattered read of a row that `room` bytes further runs over the end of a chunk."""
    buffers: list[Any] = [data[:room]]
    for start in range(room, len(data), chunk):
        buffers += [bytearray(gap), data[start : start + chunk]]
    return buffers


class _Files:
    """Open files by name; when there are too many, the least recently used one is let go and closes."""

    def __init__(self, root: Path) -> None:
        self._root, self._lock = root, Lock()
        self._open: OrderedDict[str, FileIO] = OrderedDict()

    def get(self, name: str) -> FileIO:
        """Raises `FileNotFoundError`."""
        with self._lock:
            file = self._open.get(name)
            if file is None:
                file = self._open[name] = FileIO(self._root / name)
                if len(self._open) > OPEN_FILES:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(name)
            return file

    def close(self) -> None:
        with self._lock:
            self._open.clear()
