"""Reads records of a cache: any rows, straight into the batch, each checked against its crc32c.

    reader = CacheReader(root, ["image", "text"])
    reader.num_samples                       # samples that every one of these columns has
    rows = reader.first_row["text"][samples] # rows of a column, numbered over its parts
    reader.gather("text", rows)              # {"prompt_embeds": (B, D), "text_encoder_hidden_states":
                                             #  (B, N, D) zero-padded to the longest, "n_tokens": (B,)}

Rows are found by the extent index and read with `preadv` into the batch buffer; no container library is
in the way. Memory: the indices of the columns asked for, about 24 bytes a row and field.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.cache.extents import FieldExtents, PartIndex
from data_tools.cache.fields import Column, Field
from data_tools.cache.manifest import NULL_PART, Cache, Commit, Part
from data_tools.cache.store import LocalStore
from data_tools.cache.verify import load_index, size_faults
from data_tools.cache.zarr_part import crc32c
from data_tools.errors import DataFault, UserError

OPEN_FILES = 256


class CacheReader:
    """The committed parts of some columns of a cache, opened together.

    `key_hash` (N,) uint64, `first_row[column]` (N,) and `num_rows[column]` (N,) int64 describe the
    N samples that all of the columns hold. Raises `UserError` for a missing column or an unfinished
    cache, `DataFault` for a part that is not what was committed.
    """

    def __init__(self, root: Path, columns: Sequence[str], *, allow_partial: bool = False) -> None:
        self.cache = Cache.open(LocalStore(root))
        self.columns: dict[str, Column] = {name: self._column(name) for name in columns}
        self._parts = {name: _ColumnParts(self.cache, column) for name, column in self.columns.items()}
        self._join(self.cache.plan(), allow_partial)

    @property
    def root(self) -> Path:
        return self.cache.store.root

    def gather(self, column: str, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The fields of some rows of a column, stacked; ragged ones padded with zeros, with their lengths.

        `n_tokens` (or whatever the declaration calls the ragged dimension) is int64 (B,).
        """
        return self._parts[column].gather(rows)

    def null(self, column: str) -> dict[str, NDArray[Any]]:
        """The column's null condition, without a batch dimension."""
        parts = self._parts[column]
        batch = parts.gather(np.array([parts.null_row], dtype=np.int64))
        return {name: value[0] for name, value in batch.items()}

    def close(self) -> None:
        for parts in self._parts.values():
            parts.close()

    def _column(self, name: str) -> Column:
        column = self.cache.column(name)
        if column is None:
            found = ", ".join(self.cache.column_names()) or "none"
            raise UserError(
                f"--cache: {self.root} has no column {name!r} (it has: {found}); add it with precompute"
            )
        return column

    def _join(self, plan: list[Part], allow_partial: bool) -> None:
        """Find the samples that every column has, in the plan's order."""
        firsts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in self.columns}
        counts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in self.columns}
        hashes: list[NDArray[np.uint64]] = []
        for part in plan:
            missing = [name for name, parts in self._parts.items() if part.name not in parts.index]
            if missing and not allow_partial:
                raise UserError(
                    f"--cache: {self.root} is unfinished: column {missing[0]} lacks {part.name}; "
                    "run precompute again, or train on what is there with --allow-partial"
                )
            if missing:
                continue
            indices = [parts.index[part.name] for parts in self._parts.values()]
            common = indices[0].sample_index
            for index in indices[1:]:
                common = np.intersect1d(common, index.sample_index, assume_unique=True)
            for name, index in zip(self._parts, indices):
                at = np.searchsorted(index.sample_index, common)
                firsts[name].append(index.row_offsets[at] + self._parts[name].first_row[part.name])
                counts[name].append(index.row_offsets[at + 1] - index.row_offsets[at])
            hashes.append(indices[0].key_hash[np.searchsorted(indices[0].sample_index, common)])
        empty = np.zeros(0, dtype=np.int64)
        self.first_row = {name: np.concatenate([empty, *found]) for name, found in firsts.items()}
        self.num_rows = {name: np.concatenate([empty, *found]) for name, found in counts.items()}
        self.key_hash = np.concatenate([empty.astype(np.uint64), *hashes])
        self.num_samples = len(self.key_hash)


class _ColumnParts:
    """All committed parts of one column; rows are numbered over them in the order of their names."""

    def __init__(self, cache: Cache, column: Column) -> None:
        self.store, self.column = cache.store, column
        self.commits = list(cache.commits(column).values())
        indices = [self._open(commit) for commit in self.commits]
        self.index: dict[str, PartIndex] = {c.part: index for c, index in zip(self.commits, indices)}
        ends = np.cumsum([commit.rows for commit in self.commits])
        self.starts = np.concatenate([[0], ends]).astype(np.int64)
        self.first_row = {commit.part: int(start) for commit, start in zip(self.commits, self.starts)}
        self.touched = {field.name: np.zeros(int(self.starts[-1]), dtype=bool) for field in column.fields}
        self._files: OrderedDict[str, FileIO] = OrderedDict()
        self._lock = Lock()

    @property
    def null_row(self) -> int:
        if NULL_PART not in self.first_row:
            raise DataFault(f"{self._where(NULL_PART)}: the null condition is missing; run precompute again")
        return self.first_row[NULL_PART]

    def gather(self, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        part_of_row = np.searchsorted(self.starts, rows, side="right") - 1
        batch: dict[str, NDArray[Any]] = {}
        for field in self.column.fields:
            extents = [self.index[self.commits[part].part].fields[field.name] for part in part_of_row]
            local = rows - self.starts[part_of_row]
            shapes = np.array([e.shape[i] for e, i in zip(extents, local)], dtype=np.int64)
            shapes = shapes.reshape(len(rows), len(field.shape))
            longest = (int(shapes[:, 0].max(initial=0)),) if field.ragged else ()
            out = np.zeros((len(rows), *longest, *field.item_shape), dtype=field.storage)
            for number, (part, item) in enumerate(zip(part_of_row, local)):
                self._read(field, extents[number], int(part), int(item), out[number, : shapes[number, 0]])
            batch[field.name] = out
            if field.ragged:
                batch[field.ragged] = shapes[:, 0]
        return batch

    def _read(self, field: Field, extents: FieldExtents, part: int, item: int, out: NDArray[Any]) -> None:
        """One row into `out`, contiguous and of the row's shape; gaps between chunks are skipped."""
        flat = out.reshape(-1).view(np.uint8)
        offset, done = int(extents.offset[item]), 0
        period = extents.chunk_bytes + extents.gap_bytes
        buffers: list[Any] = []
        while done < len(flat):
            room = extents.chunk_bytes - (offset % period if done == 0 else 0)
            buffers.append(flat[done : done + room])
            done += room
            if done < len(flat):
                buffers.append(bytearray(extents.gap_bytes))
        wanted = sum(len(buffer) for buffer in buffers)
        file = self._file(extents.object, part)  # held here, so that no other thread's eviction closes it
        if os.preadv(file.fileno(), buffers, offset) != wanted:
            raise self._damaged(part, f"{field.name} ends before row {item}")
        row = int(self.starts[part]) + item
        if not self.touched[field.name][row]:
            if crc32c(flat) != extents.crc32c[item]:
                raise self._damaged(part, f"{field.name}: crc32c of row {item} differs")
            self.touched[field.name][row] = True

    def _file(self, name: str, part: int) -> FileIO:
        """An open file; the least recently used one is let go when there are too many, and closes itself."""
        with self._lock:
            if name not in self._files:
                try:
                    self._files[name] = FileIO(self.store.root / name)
                except FileNotFoundError:
                    raise self._damaged(part, f"{name} is missing") from None
            self._files.move_to_end(name)
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
            return self._files[name]

    def close(self) -> None:
        self._files.clear()

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
