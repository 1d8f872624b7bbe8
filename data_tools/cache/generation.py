"""What a column held at one moment: its commit records side by side, in one file.

    columns/<column>/<identity>/generations/000003.npz

A generation is written once and never changed; the next one extends it. It is only a digest: where it does
not cover the plan, `current` reads the commit records it lacks, so a generation that was never written
costs time and nothing else. A reader keeps the one it opened, whatever is committed meanwhile.

Arrays, with P parts in the order of their names, F fields:

    part (P)               name
    rows (P)               int64
    index, index_hash (P)  name of the extent index and its xxh3-128
    object (P, F)          name of the object that holds the field's rows; empty if there are none
    object_size (P, F)     int64, bytes
    lacking, lacking_part  position in the part's sample table, and number of the part, of each sample that
                           the column does not have
    low, low_part          the same of each sample whose key's hash is below `LOW`: what a validation split
    low_hash               of up to 1/32 needs; and that hash
"""

import io
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_tools.cache.extents import PartIndex
from data_tools.cache.fields import Column
from data_tools.cache.manifest import NULL_PART, Cache, Commit, Part, column_folder
from data_tools.cache.verify import load_index
from data_tools.errors import DataFault

LOW = 1 << 59
"One hash in 32 lies below."


@dataclass(frozen=True)
class Generation:
    """See above."""

    part: NDArray[np.bytes_]
    rows: NDArray[np.int64]
    index: NDArray[np.bytes_]
    index_hash: NDArray[np.bytes_]
    object: NDArray[np.bytes_]
    object_size: NDArray[np.int64]
    lacking: NDArray[np.int32]
    lacking_part: NDArray[np.int32]
    low: NDArray[np.int32]
    low_part: NDArray[np.int32]
    low_hash: NDArray[np.uint64]

    def dump(self) -> bytes:
        """An `.npz` and, before it, its xxh3-128 in hex."""
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: getattr(self, field.name) for field in fields(self)})
        return xxhash.xxh3_128_hexdigest(buffer.getvalue()).encode() + buffer.getvalue()

    @classmethod
    def load(cls, data: bytes) -> "Generation":
        """Raises `ValueError` if a byte has changed."""
        body = memoryview(data)[32:]
        if xxhash.xxh3_128_hexdigest(body).encode() != data[:32]:
            raise ValueError("has changed bytes (xxh3-128 differs)")
        with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def current(cache: Cache, column: Column, plan: list[Part]) -> Generation:
    """The latest generation of a column, and every later commit. Raises `DataFault` for a damaged record."""
    latest = _latest(cache, column)
    known = set(latest.part.tolist())
    wanted = [part.name for part in plan] + [NULL_PART] * column.has_null
    if all(name.encode() in known for name in wanted):
        return latest
    return _extended(cache, column, plan, latest)


def publish(cache: Cache, column: Column, plan: list[Part], *, rebuild: bool = False) -> None:
    """Write the next generation if anything was committed since the last; `rebuild` starts from nothing.

    Of several workers that publish at once one wins; what the others committed is in a later generation, and
    until then `current` finds it.
    """
    latest = _generation(column, []) if rebuild else _latest(cache, column)
    extended = _extended(cache, column, plan, latest)
    if len(extended.part) > len(latest.part):
        newest = max(_numbers(cache, column), default=0)
        cache.store.create(f"{_folder(column)}/{newest + 1:06d}.npz", extended.dump())


def _folder(column: Column) -> str:
    return f"{column_folder(column)}/generations"


def _numbers(cache: Cache, column: Column) -> list[int]:
    return [int(name.removesuffix(".npz")) for name in cache.store.names(_folder(column))]


def _latest(cache: Cache, column: Column) -> Generation:
    """The newest generation, an empty one if there is none."""
    numbers = _numbers(cache, column)
    if not numbers:
        return _generation(column, [])
    name = f"{_folder(column)}/{max(numbers):06d}.npz"
    try:
        return Generation.load(cache.store.read(name))
    except ValueError as err:
        raise DataFault(f"--cache: {cache.store}: {name} {err}; run precompute --repair") from None


def _extended(cache: Cache, column: Column, plan: list[Part], known: Generation) -> Generation:
    """A generation and every commit that it lacks, in the order of the parts' names."""
    sizes = {part.name: part.samples for part in plan}
    have = set(known.part.tolist())
    later = []
    for name in cache.store.names(f"{column_folder(column)}/commits"):
        part = name.removesuffix(".json")
        if part.encode() not in have and (commit := cache.commit(column, part)) is not None:
            later.append((commit, _index(cache, commit), sizes.get(part, 1)))
    return _join(known, _generation(column, later)) if later else known


def _index(cache: Cache, commit: Commit) -> PartIndex:
    try:
        return load_index(cache.store, commit)
    except (ValueError, FileNotFoundError) as err:
        where = f"--cache: {cache.store}: column {commit.column}, {commit.part}"
        raise DataFault(f"{where}: {err}; redo it with: precompute --repair") from None


def _generation(column: Column, commits: list[tuple[Commit, PartIndex, int]]) -> Generation:
    """(commit record, its extent index, samples that the plan gives the part) of each part → arrays."""
    sizes = [{item.name: item.size for item in commit.objects} for commit, _, _ in commits]
    hashes = [{item.name: item.xxh3_128 for item in commit.objects}[commit.index] for commit, _, _ in commits]
    names = [[index.fields[f.name].object for f in column.fields] for _, index, _ in commits]
    lacking = [np.setdiff1d(np.arange(n, dtype=np.int32), index.sample_index) for _, index, n in commits]
    low = [index.key_hash < np.uint64(LOW) for _, index, _ in commits]

    def numbered(counts: list[int]) -> NDArray[np.int32]:
        return np.repeat(np.arange(len(commits), dtype=np.int32), counts)

    def joined(arrays: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
        return np.concatenate([np.zeros(0, dtype=dtype), *arrays])

    shape = (len(commits), len(column.fields))
    return Generation(
        part=np.array([commit.part for commit, _, _ in commits], dtype=np.bytes_),
        rows=np.array([commit.rows for commit, _, _ in commits], dtype=np.int64),
        index=np.array([commit.index for commit, _, _ in commits], dtype=np.bytes_),
        index_hash=np.array(hashes, dtype=np.bytes_),
        object=np.array(names, dtype=np.bytes_).reshape(shape),
        object_size=np.array([[s.get(n, 0) for n in ns] for s, ns in zip(sizes, names)], np.int64).reshape(
            shape
        ),
        lacking=joined(lacking, np.int32),
        lacking_part=numbered([len(positions) for positions in lacking]),
        low=joined([index.sample_index[chosen] for (_, index, _), chosen in zip(commits, low)], np.int32),
        low_part=numbered([int(chosen.sum()) for chosen in low]),
        low_hash=joined([index.key_hash[chosen] for (_, index, _), chosen in zip(commits, low)], np.uint64),
    )


def _join(first: Generation, second: Generation) -> Generation:
    """Both, parts in the order of their names."""
    arrays = {
        field.name: np.concatenate([getattr(first, field.name), getattr(second, field.name)])
        for field in fields(Generation)
    }
    arrays["lacking_part"][len(first.lacking_part) :] += len(first.part)
    arrays["low_part"][len(first.low_part) :] += len(first.part)
    order = np.argsort(arrays["part"], kind="stable")
    place = np.argsort(order).astype(np.int32)  # old number → new number
    for name in ("part", "rows", "index", "index_hash", "object", "object_size"):
        arrays[name] = arrays[name][order]
    for name, others in (("lacking_part", ["lacking"]), ("low_part", ["low", "low_hash"])):
        arrays[name] = place[arrays[name]]
        by_part = np.argsort(arrays[name], kind="stable")
        for each in (name, *others):
            arrays[each] = arrays[each][by_part]
    return Generation(**arrays)
