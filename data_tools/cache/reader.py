"""Reads records of a cache: any rows, straight into the batch, each checked against its crc32c.

    reader = CacheReader(root, ["image", "text"])
    reader.num_samples                       # samples that every one of these columns has
    rows = reader.first_row["text"][samples] # rows of a column, numbered over its parts
    reader.gather("text", rows)              # {"prompt_embeds": (B, D), "text_encoder_hidden_states":
                                             #  (B, N, D) zero-padded to the longest, "n_tokens": (B,)}

`data_tools.cache.records` reads the rows; what is here finds the samples that several columns share.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.cache.fields import Column
from data_tools.cache.manifest import Cache, Part
from data_tools.cache.records import ColumnRecords
from data_tools.cache.store import LocalStore
from data_tools.errors import UserError


class CacheReader:
    """The committed parts of some columns of a cache, opened together.

    `key_hash` (N,) uint64, `first_row[column]` (N,) and `num_rows[column]` (N,) int64 describe the
    N samples that all of the columns hold. Raises `UserError` for a missing column or an unfinished
    cache, `DataFault` for a part that is not what was committed.
    """

    def __init__(
        self, root: Path, columns: Sequence[str], *, allow_partial: bool = False, num_threads: int = 2
    ) -> None:
        self.cache = Cache.open(LocalStore(root))
        self.columns: dict[str, Column] = {name: self._column(name) for name in columns}
        self._parts = {
            name: ColumnRecords(self.cache, column, num_threads=num_threads)
            for name, column in self.columns.items()
        }
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
