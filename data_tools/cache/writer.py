"""Writes one part of one column. With `reader.py` the only code that touches records.

Rows are checked as they come, kept until `commit`, then written under a fresh attempt name; the commit
record goes last and is created exclusively. Memory: the part's payload (a prior part of 2,048 samples
about 110 MB, a decoder part at 768 px 151 MB), and its largest field once more while it is written.
"""

import secrets
from collections.abc import Iterable
from contextlib import suppress

import numpy as np
import xxhash

from data_tools.cache.extents import FieldExtents, PartIndex, crc32c
from data_tools.cache.fields import Column, Row
from data_tools.cache.identity import digest
from data_tools.cache.manifest import Commit, Object, column_folder, sealed
from data_tools.cache.rows import Container, PartRows, Placement, row_shapes
from data_tools.cache.store import Store
from data_tools.cache.zarr_part import ZarrPart
from data_tools.sources import Sample


class PartWriter:
    """Collects the rows of one part of one column and commits them together."""

    def __init__(
        self, store: Store, column: Column, part: str, *, container: Container | None = None
    ) -> None:
        self.store, self.column, self.part = store, column, part
        self.container = container or ZarrPart()
        self.encode_seconds = 0.0
        self.prompts: tuple[str, ...] = ()
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
        """Write everything, then the commit record. False if another writer has committed this part.

        What was written for nothing, because the place failed or another writer was first, is removed again.
        """
        try:
            record = sealed(self._write())
        except BaseException:
            self._discard()
            raise
        # from here on the objects may be named by a record, even if this raises
        name = f"{column_folder(self.column)}/commits/{self.part}.json"
        if self.store.create(name, record) or self._has(name, record):
            return True
        self._discard()
        return False

    def _has(self, name: str, record: bytes) -> bool:
        """True if the record is there after all: the answer to a `create` may be lost on its way."""
        try:
            return self.store.read(name) == record
        except FileNotFoundError:
            return False

    def _write(self) -> Commit:
        about = {"column": self.column.name, "part": self.part, "identity": digest(self.column.identity)}
        rows = self._part_rows(about)
        name = f"{column_folder(self.column)}/parts/{self.part}-{self._attempt}"
        placements = self.container.write(self._put, name, rows)
        index = _index(rows, placements)
        self._put(f"{name}.npz", [index.dump()])
        return Commit(
            **about,
            attempt=self._attempt,
            samples=len(rows.keys),
            rows=len(rows.rows),
            field_bytes={f.name: sum(row[f.name].nbytes for row in rows.rows) for f in self.column.fields},
            index=f"{name}.npz",
            objects=tuple(self._objects),
            rejects=tuple(self._rejects),
            encode_seconds=round(self.encode_seconds, 3),
            prompts=self.prompts,
        )

    def _discard(self) -> None:
        with suppress(OSError):  # what cannot be removed now is left to `data-tools gc`
            self.store.remove_many([item.name for item in self._objects])
        self._objects.clear()

    def _part_rows(self, about: dict[str, str]) -> PartRows:
        order = sorted(self._samples)
        counts = [len(self._samples[index][1]) for index in order]
        return PartRows(
            fields=self.column.fields,
            rows=[row for index in order for row in self._samples[index][1]],
            keys=[self._samples[index][0] for index in order],
            sample_index=np.array(order, dtype=np.int32),
            row_offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            about=about,
        )

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


def _index(rows: PartRows, placements: dict[str, Placement]) -> PartIndex:
    """The extent index: the container's placements, and each row's shape and checksum."""
    fields = {}
    for field in rows.fields:
        fields[field.name] = FieldExtents(
            **vars(placements[field.name]),
            shape=row_shapes(field, rows.rows),
            crc32c=np.array([crc32c(value) for value in rows.values(field)], dtype=np.uint32),
        )
    hashes = [xxhash.xxh3_64_intdigest(key.encode()) for key in rows.keys]
    return PartIndex(rows.sample_index, np.array(hashes, dtype=np.uint64), rows.row_offsets, fields)
