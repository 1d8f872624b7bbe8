"""Writes one part of one column. With `reader.py` the only code that touches records.

Rows are checked as they come, kept until `commit`, then written under a fresh attempt name; the commit
record goes last and is created exclusively. Memory: the part's payload (a prior part of 2,048 samples
about 110 MB, a decoder part at 768 px 151 MB).
"""

import secrets
from collections.abc import Iterable
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_tools.cache import zarr_part
from data_tools.cache.extents import FieldExtents, PartIndex
from data_tools.cache.fields import Column, Field, Row
from data_tools.cache.identity import digest
from data_tools.cache.manifest import Commit, Object, column_folder, sealed
from data_tools.cache.store import LocalStore
from data_tools.sources import Sample


class PartWriter:
    """Collects the rows of one part of one column and commits them together."""

    def __init__(self, store: LocalStore, column: Column, part: str) -> None:
        self.store, self.column, self.part = store, column, part
        self.encode_seconds = 0.0
        self._samples: dict[int, tuple[str, list[Row]]] = {}
        self._rejects: list[dict[str, str]] = []
        self._objects: list[Object] = []
        self._attempt = secrets.token_hex(4)

    def add(self, sample_index: int, key: str, rows: list[Row]) -> None:
        """The rows of one sample, one per caption or view. `ValueError` if a row does not fit."""
        assert rows, key
        assert sample_index not in self._samples, key
        for row in rows:
            if row.keys() != {field.name for field in self.column.fields}:
                raise ValueError(f"{self.column.name}: found fields {sorted(row)}")
            for field in self.column.fields:
                field.check(row[field.name])
        self._samples[sample_index] = (key, rows)

    def reject(self, sample: Sample, reason: str) -> None:
        """This column cannot have that sample, for this reason."""
        self._rejects.append({"key": sample.key, "reason": reason, "place": sample.place})

    def commit(self) -> bool:
        """Write everything, then the commit record. False if another writer has committed this part."""
        order = sorted(self._samples)
        keys = [self._samples[index][0] for index in order]
        rows = [row for index in order for row in self._samples[index][1]]
        counts = [len(self._samples[index][1]) for index in order]
        group = f"{column_folder(self.column)}/parts/{self.part}-{self._attempt}.zarr"
        index = PartIndex(
            sample_index=np.array(order, dtype=np.int32),
            key_hash=np.array([xxhash.xxh3_64_intdigest(key.encode()) for key in keys], dtype=np.uint64),
            row_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            fields={field.name: self._put_field(group, field, rows) for field in self.column.fields},
        )
        self._put_array(group, "sample_index", index.sample_index)
        self._put_array(group, "row_offsets", index.row_offsets)
        about = {"column": self.column.name, "part": self.part, "identity": digest(self.column.identity)}
        self._put(f"{group}/zarr.json", [zarr_part.group_metadata(about)])
        index_name = group.removesuffix(".zarr") + ".npz"
        self._put(index_name, [index.dump()])
        record = Commit(
            **about,
            attempt=self._attempt,
            samples=len(order),
            rows=len(rows),
            field_bytes={f.name: sum(row[f.name].nbytes for row in rows) for f in self.column.fields},
            index=index_name,
            objects=tuple(self._objects),
            rejects=tuple(self._rejects),
            encode_seconds=round(self.encode_seconds, 3),
        )
        return self.store.create(f"{column_folder(self.column)}/commits/{self.part}.json", sealed(record))

    def _put_field(self, group: str, field: Field, rows: list[Row]) -> FieldExtents:
        """Store all rows of a field as one array (ragged ones end to end) and say where each lies."""
        values = [np.ascontiguousarray(row[field.name]) for row in rows]
        lengths = np.array([len(v) if field.ragged else 1 for v in values], dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        items = np.zeros((int(starts[-1]), *field.item_shape), dtype=field.storage)
        for value, start, length in zip(values, starts, lengths):
            items[start : start + length] = value
        grid = self._put_array(group, field.name, items, {"dtype": field.dtype})
        if field.ragged:
            self._put_array(group, f"{field.name}_offsets", starts)
        return FieldExtents(
            object=f"{group}/{field.name}/{zarr_part.shard_key(field.item_shape)}",
            chunk_bytes=grid.chunk_bytes,
            gap_bytes=zarr_part.CRC_BYTES,
            offset=grid.offset(starts[:-1]),
            shape=np.array([v.shape for v in values], dtype=np.int32).reshape(len(values), len(field.shape)),
            crc32c=np.array([zarr_part.crc32c(value) for value in values], dtype=np.uint32),
        )

    def _put_array(
        self, group: str, name: str, items: NDArray[Any], attributes: dict[str, Any] | None = None
    ) -> zarr_part.ChunkGrid:
        item_shape = items.shape[1:]
        grid = zarr_part.ChunkGrid(len(items), int(np.prod(item_shape)) * items.itemsize)
        metadata = zarr_part.array_metadata(grid, item_shape, items.dtype, attributes or {})
        self._put(f"{group}/{name}/zarr.json", [metadata])
        if len(items):
            self._put(f"{group}/{name}/{zarr_part.shard_key(item_shape)}", zarr_part.shard(grid, items))
        return grid

    def _put(self, name: str, chunks: Iterable[bytes]) -> None:
        """Store an object of this part, and note its size and hash for the commit record."""
        hasher, size = xxhash.xxh3_128(), 0

        def measured() -> Iterable[bytes]:
            nonlocal size
            for chunk in chunks:
                hasher.update(chunk)
                size += len(chunk)
                yield chunk

        self.store.put(name, measured())
        self._objects.append(Object(name, size, hasher.hexdigest()))
