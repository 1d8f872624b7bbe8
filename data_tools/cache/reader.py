"""Reads records of a cache: any rows, straight into the batch, each checked against its crc32c.

    reader = CacheReader(root, ["image", "text"])
    reader.num_samples                          # samples that every one of these columns has
    first, count = reader.rows("text", samples) # a sample owns the rows first … first+count-1 of a column
    reader.gather("text", first)                # {"prompt_embeds": (B, D), "text_encoder_hidden_states":
                                                #  (B, N, D) zero-padded to the longest, "n_tokens": (B,)}

`data_tools.cache.records` reads the rows; what is here finds the samples that several columns share.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.cache.fields import Column
from data_tools.cache.generation import LOW
from data_tools.cache.manifest import Cache, Part
from data_tools.cache.records import ColumnRecords
from data_tools.cache.store import Store, open_store
from data_tools.errors import UserError

Ids = NDArray[np.int64]


class CacheReader:
    """The parts of some columns of a cache that are committed now, opened together.

    Samples are numbered 0 … num_samples-1 over the parts, in the plan's order, those left out that one of
    the columns lacks. Raises `UserError` for a missing column or an unfinished cache, `DataFault` for a part
    that is not what was committed.
    """

    def __init__(
        self,
        place: str | Path | Store,
        columns: Sequence[str],
        *,
        allow_partial: bool = False,
        num_threads: int | None = None,
        paranoid: bool = False,
    ) -> None:
        self.cache = Cache.open(open_store(place) if isinstance(place, (str, Path)) else place)
        self.columns: dict[str, Column] = {name: self._column(name) for name in columns}
        plan = self.cache.plan()
        self._records = {
            name: ColumnRecords(self.cache, column, plan, num_threads=num_threads, paranoid=paranoid)
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

    @property
    def url(self) -> str:
        return self.cache.store.url

    def rows(self, column: str, samples: Ids | None = None) -> tuple[Ids, Ids]:
        """First row and number of rows in a column of each of `samples`, or of all: (B,), (B,)."""
        samples = self._everything() if samples is None else samples
        records = self._records[column]
        first, count = np.empty_like(samples), np.empty_like(samples)
        for part, chosen, positions in self._by_part(samples):
            number = records.number[self._parts[part].name]
            index = records.index(number)
            at = np.searchsorted(index.sample_index, positions)
            first[chosen] = records.starts[number] + index.row_offsets[at]
            count[chosen] = index.row_offsets[at + 1] - index.row_offsets[at]
        return first, count

    def gather(self, column: str, rows: Ids) -> dict[str, NDArray[Any]]:
        """The fields of some rows of a column, stacked; ragged ones padded with zeros, with their lengths.

        `n_tokens` (or whatever the declaration calls the ragged dimension) is int64 (B,).
        """
        return self._records[column].gather(rows)

    def null(self, column: str) -> dict[str, NDArray[Any]]:
        """The column's null condition, without a batch dimension."""
        records = self._records[column]
        batch = records.gather(np.array([records.null_row], dtype=np.int64))
        return {name: value[0] for name, value in batch.items()}

    def key_hashes(self, samples: Ids | None = None) -> NDArray[np.uint64]:
        """xxh3-64 of the key of each of `samples`, or of all: (B,)."""
        samples = self._everything() if samples is None else samples
        records = next(iter(self._records.values()))
        hashes = np.empty(len(samples), dtype=np.uint64)
        for part, chosen, positions in self._by_part(samples):
            index = records.index(records.number[self._parts[part].name])
            hashes[chosen] = index.key_hash[np.searchsorted(index.sample_index, positions)]
        return hashes

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
        """For each part of which a column lacks a sample: the positions that all columns have."""
        lacking: dict[int, list[Ids]] = {}
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
