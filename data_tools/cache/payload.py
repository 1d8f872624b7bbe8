"""All rows of one committed part, at rest: what `verify --full`, `convert`, `merge` and `export` read.

Trainers read single rows (`data_tools.cache.records`); whoever needs all of a part reads its objects once,
whole, and cuts the rows out by the extent index. Nothing is copied but rows that run over a gap. Memory: the
objects of one part.
"""

from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data_tools.cache.extents import FieldExtents, PartIndex
from data_tools.cache.fields import Column, Field, Row
from data_tools.cache.manifest import REPAIR, Cache, Commit
from data_tools.cache.verify import load_index
from data_tools.errors import DataFault


@dataclass
class PartPayload:
    """The rows of a part of a column. Raises `DataFault` that names it for what is not as committed."""

    cache: Cache
    column: Column
    commit: Commit
    index: PartIndex
    _objects: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    @classmethod
    def open(cls, cache: Cache, column: Column, commit: Commit) -> "PartPayload":
        """Reads the extent index only; objects are read when their first row is asked for."""
        try:
            return cls(cache, column, commit, load_index(cache.store, commit))
        except FileNotFoundError:
            raise part_fault(cache, column.name, commit.part, f"{commit.index} is missing") from None
        except ValueError as err:
            raise part_fault(cache, column.name, commit.part, str(err)) from None

    def rows(self, number: int) -> list[Row]:
        """The rows of the part's `number`th sample (as `index.sample_index` counts), each checked."""
        begin, end = self.index.row_offsets[number : number + 2].tolist()
        return [self._row(row) for row in range(begin, end)]

    def crc32c(self, number: int) -> dict[str, list[int]]:
        """Field → the committed crc32c of each row of that sample."""
        begin, end = self.index.row_offsets[number : number + 2].tolist()
        return {name: extents.crc32c[begin:end].tolist() for name, extents in self.index.fields.items()}

    def _row(self, row: int) -> Row:
        values = {}
        for about in self.column.fields:
            extents = self.index.fields[about.name]
            try:
                values[about.name] = cut_row(self._object(extents.object), extents, about, row)
            except ValueError as err:
                raise part_fault(self.cache, self.column.name, self.commit.part, str(err)) from None
        return values

    def _object(self, name: str) -> NDArray[np.uint8]:
        if name not in self._objects:
            try:
                self._objects[name] = np.frombuffer(self.cache.store.read(name), dtype=np.uint8)
            except FileNotFoundError:
                raise ValueError(f"{name} is missing") from None
        return self._objects[name]


def cut_row(data: NDArray[np.uint8], extents: FieldExtents, about: Field, row: int) -> NDArray[Any]:
    """One row of a field out of its object's bytes, checked against its crc32c. Raises `ValueError`."""
    shape = extents.shape[row].tolist()
    size, offset = int(np.prod(shape)) * about.storage.itemsize, int(extents.offset[row])
    chunk, gap = extents.chunk_bytes, extents.gap_bytes
    room = chunk - offset % (chunk + gap) if chunk else size
    pieces = [data[offset : offset + min(room, size)]]
    for done in range(room, size, chunk or 1):
        start = offset + done + (done - room) // chunk * gap + gap
        pieces.append(data[start : start + min(chunk, size - done)])
    found = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    if len(found) != size:
        raise ValueError(f"{about.name} ends before row {row}")
    if google_crc32c.value(found) != extents.crc32c[row]:
        raise ValueError(f"{about.name}: crc32c of row {row} differs")
    if offset % about.storage.itemsize:  # numpy would make a slow, unaligned view
        found = found.copy()
    value: NDArray[Any] = found.view(about.storage).reshape(shape)
    return value


def part_fault(cache: Cache, column: str, part: str, what: str) -> DataFault:
    """One line: which cache, column and part, what is wrong with it, and the command that repairs it."""
    return DataFault(f"{cache.store.url}: column {column}, {part}: {what}; redo it with: {REPAIR}")


def container_of(commit: Commit) -> str:
    """`zarr` or `webdataset`; a part without rows in a zarr group still has its metadata."""
    return "webdataset" if any(item.name.endswith(".tar") for item in commit.objects) else "zarr"
