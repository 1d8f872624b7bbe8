"""Reads records of a cache: any rows, straight into the batch, each checked against its crc32c.

    reader = CacheReader(root, ["image", "text"])
    reader.num_samples                          # samples that every one of these columns has
    first, count = reader.rows("text", samples) # a sample owns the rows first … first+count-1 of a column
    reader.gather("text", first)                # {"prompt_embeds": (B, D), "text_encoder_hidden_states":
                                                #  (B, N, D) zero-padded to the longest, "n_tokens": (B,)}

`data_tools.cache.records` reads the rows, `data_tools.cache.buckets` knows which samples have which shape;
what is here finds the samples that several columns share. All of it may be called from several threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.cache.buckets import Buckets, sample_counts
from data_tools.cache.cells import Cells
from data_tools.cache.fields import Column, Row
from data_tools.cache.generation import LOW
from data_tools.cache.manifest import Cache, Part, plan_hash
from data_tools.cache.reads import Ids, page_aligned
from data_tools.cache.records import ColumnRecords, Empty
from data_tools.cache.store import Store, open_store
from data_tools.errors import UserError


@dataclass(frozen=True)
class _SampleRows:
    """The rows of a column that each sample owns; filled part by part."""

    first: Ids
    count: Ids
    known: NDArray[np.bool_]
    "By part."

    @classmethod
    def unknown(cls, samples: int, parts: int) -> "_SampleRows":
        first, count = (np.empty(samples, dtype=np.int64) for _ in range(2))  # untouched pages cost nothing
        return cls(first, count, np.zeros(parts, dtype=bool))


class CacheReader:
    """The parts of some columns of a cache that are committed now, opened together.

    Samples are numbered 0 … num_samples-1 over the parts, in the plan's order, those left out that one of
    the columns lacks, and those that are retired. Raises `UserError` for a missing column or an unfinished
    cache, `DataFault` for a part that is not what was committed.
    """

    def __init__(
        self,
        place: str | Path | Store,
        columns: Sequence[str],
        *,
        allow_partial: bool = False,
        num_threads: int | None = None,
        paranoid: bool = False,
        cells: Cells | None = None,
    ) -> None:
        """`paranoid` checks the crc32c of a row at every read, not at the first only. `cells` is for
        block order: an object store is then asked for runs of rows, which are kept there."""
        self.cache = Cache.open(open_store(place) if isinstance(place, (str, Path)) else place)
        self.columns: dict[str, Column] = {name: self._column(name) for name in columns}
        plan = self.cache.plan()
        self.plan_hash = plan_hash(plan)
        "Which samples the cache holds; a copy of them has the same."
        self._records = {
            name: ColumnRecords(
                self.cache, column, plan, num_threads=num_threads, paranoid=paranoid, cells=cells
            )
            for name, column in self.columns.items()
        }
        self._parts = [part for part in plan if self._is_whole(part, allow_partial)]
        self._positions = self._shared_positions()
        counts = [
            len(self._positions[number]) if number in self._positions else part.samples
            for number, part in enumerate(self._parts)
        ]
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.num_samples = int(self._starts[-1])
        self._rows_of = {name: _SampleRows.unknown(self.num_samples, len(self._parts)) for name in columns}
        self._buckets: dict[str, Buckets] = {}

    @property
    def url(self) -> str:
        return self.cache.store.url

    @property
    def is_remote(self) -> bool:
        """True if a request takes long, so that neighbours should be read together."""
        return self.cache.store.coalesce_bytes > 0

    def rows(self, column: str, samples: Ids | None = None) -> tuple[Ids, Ids]:
        """First row and number of rows in a column of each of `samples`, or of all: (B,), (B,)."""
        samples = self._everything() if samples is None else samples
        found = self._rows_of[column]
        parts = np.searchsorted(self._starts, samples, side="right") - 1
        new = np.unique(parts[~found.known[parts]]).tolist()
        records = self._records[column]
        records.load(records.number[self._parts[part].name] for part in new)
        for part in new:
            span = slice(*self._starts[part : part + 2].tolist())
            found.first[span], found.count[span] = self._rows_in(column, part)
            found.known[part] = True
        return found.first[samples], found.count[samples]

    def gather(self, column: str, rows: Ids, empty: Empty = page_aligned) -> dict[str, NDArray[Any]]:
        """The fields of some rows of a column, stacked; ragged ones padded with zeros, with their lengths.

        `n_tokens` (or whatever the declaration calls the ragged dimension) is int64 (B,). `empty(shape,
        dtype)` makes the arrays that are read into, for a caller who wants them in memory of his own. Raises
        `ValueError` for rows of several shapes of a bucketed field.
        """
        return self._records[column].gather(rows, empty)

    def lengths(self, column: str, rows: Ids) -> Ids:
        """Length of the ragged dimension of each row, without reading it: (B,)."""
        return self._records[column].shapes(rows)[:, 0].astype(np.int64)

    def null(self, column: str) -> Row:
        """The column's null condition, without a batch dimension."""
        return self._row(column, self._records[column].null_row)

    def prompts(self, column: str) -> dict[str, Row]:
        """The cached prompts, and the row of each without a batch dimension."""
        records = self._records[column]
        found = records.generation.prompts()
        return {
            prompt: self._row(column, int(records.starts[records.number[part]]) + row)
            for prompt, (part, row) in found.items()
        }

    def buckets(self, column: str) -> list[tuple[int, ...]]:
        """The shapes that samples have in a bucketed column, sorted; [] for any other column."""
        if not any(field.bucketed for field in self.columns[column].fields):
            return []
        return self._buckets_of(column).shapes

    def bucket_counts(self, column: str) -> Ids:
        """Samples of each bucket: (K,)."""
        return self._buckets_of(column).starts[:, -1]

    def in_bucket(self, column: str, bucket: int, places: Ids) -> Ids:
        """The samples at some places of a bucket, which counts its samples in their order: (B,)."""
        return self._buckets_of(column).samples(bucket, places)

    def bucket_of(self, column: str, samples: Ids) -> tuple[Ids, Ids]:
        """The bucket of each sample, and its place there: (B,), (B,)."""
        return self._buckets_of(column).places(samples)

    def payload_bytes(self, columns: Sequence[str]) -> int:
        """Bytes of all rows of some columns."""
        return sum(int(self._records[name].generation.field_bytes.sum()) for name in columns)

    def key_hashes(self, samples: Ids | None = None) -> NDArray[np.uint64]:
        """xxh3-64 of the key of each of `samples`, or of all: (B,)."""
        samples = self._everything() if samples is None else samples
        records = next(iter(self._records.values()))
        hashes = np.empty(len(samples), dtype=np.uint64)
        touched = self._by_part(samples)
        records.load(records.number[self._parts[part].name] for part, _, _ in touched)
        for part, chosen, positions in touched:
            index = records.index(records.number[self._parts[part].name])
            hashes[chosen] = index.key_hash[np.searchsorted(index.sample_index, positions)]
        return hashes

    def keys(self, samples: Ids) -> list[str]:
        """The keys of some samples, for messages: the sample tables of their parts are read whole."""
        keys = np.empty(len(samples), dtype=object)
        for part, chosen, positions in self._by_part(samples):
            table = self.cache.table(self._parts[part])
            keys[chosen] = [table[position]["key"] for position in positions.tolist()]
        return [str(key) for key in keys]

    def held_out(self, fraction: float) -> Ids:
        """The samples kept for validation, smallest key hash first: a rule on the key, so growth moves none.

        Up to 1/32 the answer is in the generation; for more, every part's index is read.
        """
        limit = int(fraction * 2.0**64)
        if limit > LOW:
            hashes = self.key_hashes()
            samples = np.flatnonzero(hashes < np.uint64(limit))
            hashes = hashes[samples]
        else:
            samples, hashes = self._low(limit)
        ordered: Ids = samples[np.argsort(hashes, kind="stable")]
        return ordered

    def close(self) -> None:
        for records in self._records.values():
            records.close()

    def _rows_in(self, column: str, part: int) -> tuple[Ids, Ids]:
        """First row and number of rows of each sample of a part."""
        records = self._records[column]
        number = records.number[self._parts[part].name]
        index = records.index(number)
        at = np.arange(len(index.sample_index))
        if part in self._positions:
            at = np.searchsorted(index.sample_index, self._positions[part])
        first, end = index.row_offsets[at], index.row_offsets[at + 1]
        return records.starts[number] + first, end - first

    def _row(self, column: str, row: int) -> Row:
        batch = self._records[column].gather(np.array([row], dtype=np.int64))
        return {name: value[0] for name, value in batch.items()}

    def _buckets_of(self, column: str) -> Buckets:
        """Made when first asked for: the indices of parts of which another column lacks samples are read."""
        if column not in self._buckets:
            records = self._records[column]

            def shapes(part: int) -> NDArray[np.int32]:
                first = self.rows(column, np.arange(*self._starts[part : part + 2]))[0]
                return records.shapes(first)

            names = [part.name for part in self._parts]
            counts = sample_counts(records.generation, names, shapes, set(self._positions))
            self._buckets[column] = Buckets(self._starts, counts, shapes)
        return self._buckets[column]

    def _everything(self) -> Ids:
        return np.arange(self.num_samples, dtype=np.int64)

    def _low(self, limit: int) -> tuple[Ids, NDArray[np.uint64]]:
        """Samples whose key hash is below `limit`, and their hashes, from the generation."""
        records = next(iter(self._records.values()))
        generation = records.generation
        below = generation.low_hash < np.uint64(limit)
        number = np.full(len(records.names), -1, dtype=np.int64)  # part of the column → part in here
        for ours, part in enumerate(self._parts):
            number[records.number[part.name]] = ours
        parts, positions, hashes = (
            number[generation.low_part[below]],
            generation.low[below],
            generation.low_hash[below],
        )
        samples = self._starts[parts] + positions
        known = parts >= 0
        for gappy, shared in self._positions.items():
            mine = parts == gappy
            samples[mine] = self._starts[gappy] + np.searchsorted(shared, positions[mine])
            known[mine] &= np.isin(positions[mine], shared)
        return samples[known], hashes[known]

    def _by_part(self, samples: Ids) -> list[tuple[int, Any, Ids]]:
        """(part, which of `samples` lie in it, their positions in its sample table) of each part touched."""
        parts = np.searchsorted(self._starts, samples, side="right") - 1
        found = []
        for part in np.unique(parts).tolist():
            chosen = np.flatnonzero(parts == part)
            local = samples[chosen] - self._starts[part]
            found.append((part, chosen, self._positions[part][local] if part in self._positions else local))
        return found

    def _shared_positions(self) -> dict[int, Ids]:
        """For each part of which a column lacks a sample, or some are retired: the positions to read."""
        lacking = {
            number: [np.flatnonzero(~part.is_live())]
            for number, part in enumerate(self._parts)
            if part.retired
        }
        ours = {part.name: number for number, part in enumerate(self._parts)}
        for records in self._records.values():
            generation = records.generation
            for number in np.unique(generation.lacking_part).tolist():
                if (part := ours.get(records.names[number])) is not None:
                    lacking.setdefault(part, []).append(generation.lacking[generation.lacking_part == number])
        return {
            part: np.setdiff1d(np.arange(self._parts[part].samples), np.concatenate(positions)).astype(
                np.int64
            )
            for part, positions in lacking.items()
        }

    def _column(self, name: str) -> Column:
        column = self.cache.column(name)
        if column is None:
            found = ", ".join(self.cache.column_names()) or "none"
            where = f"--cache: {self.cache.store}"
            raise UserError(f"{where} has no column {name!r} (it has: {found}); add it with precompute")
        return column

    def _is_whole(self, part: Part, allow_partial: bool) -> bool:
        missing = [name for name, records in self._records.items() if part.name not in records.number]
        if missing and not allow_partial:
            raise UserError(
                f"--cache: {self.cache.store} is unfinished: column {missing[0]} lacks {part.name}; "
                "run precompute again, or train on what is there with --allow-partial"
            )
        return not missing
