"""Several caches behind one reader: `--cache A --cache B`, `--cache A --cache B=0.3`.

Without any weight the caches are one: each sample of each of them once an epoch. With weights, a cache's
weight is its share of the draws relative to the others'; 1 where none is given. Who draws what is decided in
`data_tools.cache.order`; here samples get their numbers (cache after cache), and rows theirs (the number in
the cache, plus the cache's number shifted left by `ROW_BITS`).

A key that several caches have is held out in all of them or in none, as that is a rule on the key.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.cache.cells import MAX_BYTES, Cells
from data_tools.cache.fields import Column, Row
from data_tools.cache.identity import differences
from data_tools.cache.places import CachePlace
from data_tools.cache.reader import CacheReader
from data_tools.cache.reads import Ids, page_aligned
from data_tools.cache.records import Empty
from data_tools.errors import UserError

ROW_BITS = 48
"A column of one cache has fewer than 2^48 rows."


def open_caches(
    places: Sequence[CachePlace], columns: Sequence[str], *, block_samples: int | None = None, **options: Any
) -> "Reader":
    """The reader of one cache, or a `Mixture`. `options` are `CacheReader`'s, and what is raised as well.

    With `block_samples`, for block order, runs of so many rows are kept; all caches share `MAX_BYTES`.
    """
    readers = [
        CacheReader(
            given.place,
            columns,
            cells=Cells(block_samples, MAX_BYTES // len(places)) if block_samples else None,
            **options,
        )
        for given in places
    ]
    return Mixture(readers, [given.weight for given in places]) if len(readers) > 1 else readers[0]


class Mixture:
    """What trainers use of a `CacheReader`, over several; see there.

    Raises `UserError` unless all caches have the same columns of the same identity.
    """

    def __init__(self, readers: Sequence[CacheReader], weights: Sequence[float | None]) -> None:
        self.readers = list(readers)
        self.columns: dict[str, Column] = readers[0].columns
        for other in self.readers[1:]:
            _check_same(self.readers[0], other)
        self.weights: list[float] | None = None
        "Of each cache, None if none has one."
        if any(weight is not None for weight in weights):
            self.weights = [1.0 if weight is None else weight for weight in weights]
        self.counts = np.array([reader.num_samples for reader in readers], dtype=np.int64)
        self.starts = _starts(self.counts)
        self.num_samples = int(self.starts[-1])
        self._starts_of: dict[str, Ids] = {}

    @property
    def plan_hashes(self) -> list[str]:
        """Which samples each cache holds."""
        return [reader.plan_hash for reader in self.readers]

    @property
    def url(self) -> str:
        """All of them, for messages."""
        return ", ".join(reader.url for reader in self.readers)

    def rows(self, column: str, samples: Ids | None = None) -> tuple[Ids, Ids]:
        """First row and number of rows in a column of each of `samples`, or of all: (B,), (B,)."""
        samples = self._everything() if samples is None else samples
        first, count = np.empty_like(samples), np.empty_like(samples)
        for number, chosen, local in self._by_cache(samples):
            first[chosen], count[chosen] = self.readers[number].rows(column, local)
            first[chosen] += number << ROW_BITS
        return first, count

    def gather(self, column: str, rows: Ids, empty: Empty = page_aligned) -> dict[str, NDArray[Any]]:
        """The fields of some rows of a column, stacked; see `CacheReader.gather`."""
        caches = list(_by_row(rows))
        if len(caches) == 1:
            number, _, local = caches[0]
            return self.readers[number].gather(column, local, empty=empty)
        read = [(chosen, self.readers[number].gather(column, local)) for number, chosen, local in caches]
        ragged = {field.name for field in self.columns[column].fields if field.ragged}
        batch: dict[str, NDArray[Any]] = {}
        for name, like in read[0][1].items():
            shape = like.shape[1:]
            if name in ragged:
                shape = (max(values[name].shape[1] for _, values in read), *shape[1:])
            out = batch[name] = empty((len(rows), *shape), like.dtype)
            for chosen, values in read:
                if name in ragged:
                    length = values[name].shape[1]
                    out[chosen, :length] = values[name]
                    out[chosen, length:] = 0
                else:
                    out[chosen] = values[name]
        return batch

    def lengths(self, column: str, rows: Ids) -> Ids:
        """Length of the ragged dimension of each of `rows`: (B,)."""
        lengths = np.empty_like(rows)
        for number, chosen, local in _by_row(rows):
            lengths[chosen] = self.readers[number].lengths(column, local)
        return lengths

    def null(self, column: str) -> dict[str, NDArray[Any]]:
        """The column's null condition, without a batch dimension: the same in all caches."""
        return self.readers[0].null(column)

    def prompts(self, column: str) -> dict[str, Row]:
        """The cached prompts of all caches."""
        return {
            text: row for reader in reversed(self.readers) for text, row in reader.prompts(column).items()
        }

    def key_hashes(self, samples: Ids | None = None) -> NDArray[np.uint64]:
        """xxh3-64 of the key of each of `samples`, or of all: (B,)."""
        samples = self._everything() if samples is None else samples
        hashes = np.empty(len(samples), dtype=np.uint64)
        for number, chosen, local in self._by_cache(samples):
            hashes[chosen] = self.readers[number].key_hashes(local)
        return hashes

    def keys(self, samples: Ids) -> list[str]:
        """The keys of some samples, for messages."""
        keys = np.empty(len(samples), dtype=object)
        for number, chosen, local in self._by_cache(samples):
            keys[chosen] = self.readers[number].keys(local)
        return [str(key) for key in keys]

    def held_out(self, fraction: float) -> Ids:
        """The samples kept for validation, by each cache's own rule.

        Ordered by how far down its cache's list a sample stands, so that the first few are of all caches.
        """
        held = [reader.held_out(fraction) for reader in self.readers]
        depth = np.concatenate([(np.arange(len(samples)) + 0.5) / max(1, len(samples)) for samples in held])
        samples = np.concatenate([start + samples for start, samples in zip(self.starts.tolist(), held)])
        ordered: Ids = samples[np.argsort(depth, kind="stable")]
        return ordered

    def buckets(self, column: str) -> list[tuple[int, ...]]:
        """Shapes of the rows of a bucketed column, over all caches; [] for any other."""
        return sorted({shape for reader in self.readers for shape in reader.buckets(column)})

    def bucket_counts(self, column: str) -> Ids:
        """Samples in each of `buckets`: (K,)."""
        counts: Ids = self._bucket_starts(column)[:, -1]
        return counts

    def in_bucket(self, column: str, bucket: int, places: Ids) -> Ids:
        """The samples at some places of a bucket, whose samples stand cache after cache: (B,)."""
        starts = self._bucket_starts(column)[bucket]
        samples = np.empty_like(places)
        numbers = np.searchsorted(starts, places, side="right") - 1
        for number in np.unique(numbers).tolist():
            chosen = np.flatnonzero(numbers == number)
            own = self._own_buckets(column)[number].index(self.buckets(column)[bucket])
            local = self.readers[number].in_bucket(column, own, places[chosen] - starts[number])
            samples[chosen] = self.starts[number] + local
        return samples

    def bucket_of(self, column: str, samples: Ids) -> tuple[Ids, Ids]:
        """The bucket of each of `samples` and its place there: (B,), (B,)."""
        bucket, place = np.empty_like(samples), np.empty_like(samples)
        shapes, starts = self.buckets(column), self._bucket_starts(column)
        for number, chosen, local in self._by_cache(samples):
            ours = np.array([shapes.index(shape) for shape in self._own_buckets(column)[number]])
            own, place[chosen] = self.readers[number].bucket_of(column, local)
            bucket[chosen] = ours[own]
            place[chosen] += starts[bucket[chosen], number]
        return bucket, place

    def payload_bytes(self, columns: Sequence[str]) -> int:
        """Bytes of all rows of some columns."""
        return sum(reader.payload_bytes(columns) for reader in self.readers)

    def close(self) -> None:
        for reader in self.readers:
            reader.close()

    def _everything(self) -> Ids:
        return np.arange(self.num_samples, dtype=np.int64)

    def _by_cache(self, samples: Ids) -> Iterator[tuple[int, Ids, Ids]]:
        """(cache, which of `samples` are its, their numbers in it) of each cache touched."""
        numbers = np.searchsorted(self.starts, samples, side="right") - 1
        for number in np.unique(numbers).tolist():
            chosen = np.flatnonzero(numbers == number)
            yield number, chosen, samples[chosen] - self.starts[number]

    def _own_buckets(self, column: str) -> list[list[tuple[int, ...]]]:
        return [reader.buckets(column) for reader in self.readers]

    def _bucket_starts(self, column: str) -> Ids:
        """Where each cache's samples begin in each bucket, and the bucket's size: (K, caches + 1)."""
        if column not in self._starts_of:
            shapes = self.buckets(column)
            counts = np.zeros((len(shapes), len(self.readers)), dtype=np.int64)
            for number, reader in enumerate(self.readers):
                for shape, count in zip(reader.buckets(column), reader.bucket_counts(column).tolist()):
                    counts[shapes.index(shape), number] = count
            self._starts_of[column] = np.stack([_starts(row) for row in counts])
        return self._starts_of[column]


Reader = CacheReader | Mixture
"What trainers read."


def _starts(counts: Ids) -> Ids:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _by_row(rows: Ids) -> Iterator[tuple[int, Ids, Ids]]:
    """(cache, which of `rows` are its, their numbers in it) of each cache touched; the first for no rows."""
    numbers = rows >> ROW_BITS
    for number in np.unique(numbers).tolist() or [0]:
        chosen = np.flatnonzero(numbers == number)
        yield number, chosen, rows[chosen] - (number << ROW_BITS)


def _check_same(first: CacheReader, other: CacheReader) -> None:
    for name, column in first.columns.items():
        wanted = {"fields": _fields(column), "identity": column.identity}
        found = {"fields": _fields(other.columns[name]), "identity": other.columns[name].identity}
        if found != wanted:
            differ = "; ".join(differences(found["identity"], column.identity) or ["its fields"])
            raise UserError(
                f"--cache: column {name} of {other.url} is not what it is in {first.url}: {differ}; "
                "wanted caches whose columns were made alike"
            )


def _fields(column: Column) -> dict[str, Any]:
    return {field.name: [field.dtype, list(field.shape)] for field in column.fields}
