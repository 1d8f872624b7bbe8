"""What a column held at one moment: its commit records side by side, in one file.

    columns/<column>/<identity>/generations/000003.npz

A generation is written once and never changed; the next one extends it. It is only a digest: where it does
not cover the plan, `current` reads the commit records it lacks, so a generation that was never written
costs time and nothing else. A reader keeps the one it opened, whatever is committed meanwhile.

Arrays, with P parts in the order of their names, F fields:

    part (P)               name
    samples, rows (P)      int64
    index, index_hash (P)  name of the extent index and its xxh3-128
    object (P, F)          name of the object that holds the field's rows; empty if there are none
    object_size (P, F)     int64, bytes
    field_bytes (P, F)     int64, payload
    container (P)          zarr or webdataset
    stored_bytes (P)       int64, of all objects
    encode_seconds (P)     float64
    lacking, lacking_part  position in the part's sample table, and number of the part, of each sample that
                           the column does not have
    low, low_part          the same of each sample whose key's hash is below `LOW`: what a validation split
    low_hash               of up to 1/32 needs; and that hash
    shape (K, ndim)        of a bucketed field: each shape of the samples' first rows in each part,
    shape_part (K)         number of the part,
    shape_samples (K)      int64, and how many samples of it have that shape; K = 0 if no field is bucketed
    lengths (F, L)         int64, rows of each length of each ragged field, over the plan's parts
    prompt_lines           uint8, a JSON line for each part of prompts: [part, its prompts]
    reject_lines           uint8, zlib: a JSON line for each reject: part, key, reason, place

`lacking`, `low`, shapes, lengths and rejects are of parts of a plan only; samples that a later plan has
retired are still among them, and so are parts of which it has left nothing. Size: 230 to 340 bytes a
part (and 24 for each shape in it), half a byte a sample (for `low`) and twenty bytes a reject.
"""

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_tools.cache import npz
from data_tools.cache.digest import LOW as LOW
from data_tools.cache.digest import NUMBERED, bucketed_field, packed, part_arrays, unpacked
from data_tools.cache.extents import PartIndex
from data_tools.cache.fields import Column
from data_tools.cache.manifest import NULL_PART, PROMPTS, Cache, Commit, Part, column_folder
from data_tools.cache.verify import load_index
from data_tools.errors import DataFault

NUMBER = re.compile(r"\d+\.npz")
"Name of a generation's file."
EACH_PART = (
    *("part", "samples", "rows", "index", "index_hash", "object", "object_size", "field_bytes"),
    *("container", "stored_bytes", "encode_seconds"),
)
"Arrays with an entry for each part."


@dataclass(frozen=True)
class Generation:
    """See above."""

    part: NDArray[np.bytes_]
    samples: NDArray[np.int64]
    rows: NDArray[np.int64]
    index: NDArray[np.bytes_]
    index_hash: NDArray[np.bytes_]
    object: NDArray[np.bytes_]
    object_size: NDArray[np.int64]
    field_bytes: NDArray[np.int64]
    container: NDArray[np.bytes_]
    stored_bytes: NDArray[np.int64]
    encode_seconds: NDArray[np.float64]
    lacking: NDArray[np.int32]
    lacking_part: NDArray[np.int32]
    low: NDArray[np.int32]
    low_part: NDArray[np.int32]
    low_hash: NDArray[np.uint64]
    shape: NDArray[np.int32]
    shape_part: NDArray[np.int32]
    shape_samples: NDArray[np.int64]
    lengths: NDArray[np.int64]
    prompt_lines: NDArray[np.uint8]
    reject_lines: NDArray[np.uint8]

    def prompts(self) -> dict[str, tuple[str, int]]:
        """Each cached prompt → its part and the number of its row in there."""
        sets = self.prompt_sets().items()
        return {text: (part, row) for part, prompts in sets for row, text in enumerate(prompts)}

    def prompt_sets(self) -> dict[str, tuple[str, ...]]:
        """Each part of prompts → its prompts, one a row."""
        sets = [json.loads(line) for line in self.prompt_lines.tobytes().splitlines()]
        return {part: tuple(prompts) for part, prompts in sets}

    def rejects(self) -> list[dict[str, str]]:
        """part, key, reason and place of every reject."""
        return [json.loads(line) for line in unpacked(self.reject_lines).splitlines()]

    def dump(self) -> bytes:
        """An `.npz` and, before it, its xxh3-128 in hex."""
        body = npz.dumps({field.name: getattr(self, field.name) for field in fields(self)})
        return xxhash.xxh3_128_hexdigest(body).encode() + body

    @classmethod
    def load(cls, data: bytes) -> "Generation":
        """Raises `ValueError` if a byte has changed, `KeyError` for one of an older program."""
        body = memoryview(data)[32:]
        if xxhash.xxh3_128_hexdigest(body).encode() != data[:32]:
            raise ValueError("has changed bytes (xxh3-128 differs)")
        arrays = npz.loads(body)
        return cls(**{field.name: arrays[field.name] for field in fields(cls)})


def current(cache: Cache, column: Column, plan: list[Part]) -> Generation:
    """The latest generation of a column; where it does not cover the plan, with every later commit.

    Raises `DataFault` for a damaged record.
    """
    newest = latest(cache, column)
    known = set(newest.part.tolist())
    wanted = [part.name for part in plan] + [NULL_PART] * column.has_null
    if all(name.encode() in known for name in wanted):
        return newest
    return _extended(cache, column, plan, newest)


def publish(cache: Cache, column: Column, plan: list[Part], *, rebuild: bool = False) -> None:
    """Write the next generation if anything was committed since the last; `rebuild` starts from nothing.

    A rebuilt one is written where it differs, and damaged ones are removed. Of several workers that publish
    at once one wins; what the others committed is in a later generation, and until then `current` finds it.
    """
    known = _known(cache, column) if rebuild else latest(cache, column)
    made = _extended(cache, column, plan, _empty(column) if rebuild else known)
    if not all(np.array_equal(value, vars(known)[name]) for name, value in vars(made).items()):
        newest = max(_numbers(cache, column), default=0)
        cache.store.create(f"{_folder(column)}/{newest + 1:06d}.npz", made.dump())
    for name in _damaged(cache, column) if rebuild else []:
        with suppress(FileNotFoundError):  # another worker was first
            cache.store.remove(name)


def is_outdated(cache: Cache, column: Column) -> bool:
    """True if the latest generation names a part whose commit record was withdrawn: rebuild it."""
    return not cache.committed(column).issuperset(
        name.decode() for name in latest(cache, column).part.tolist()
    )


def _damaged(cache: Cache, column: Column) -> Iterator[str]:
    """Names of the generations whose bytes have changed."""
    for number in _numbers(cache, column):
        name = f"{_folder(column)}/{number:06d}.npz"
        try:
            load(cache, column, name)
        except ValueError:
            yield name
        except (KeyError, FileNotFoundError):
            continue


def _known(cache: Cache, column: Column) -> Generation:
    """As `latest`, an empty one for one that is damaged."""
    try:
        return latest(cache, column)
    except DataFault:
        return _empty(column)


def _folder(column: Column) -> str:
    return f"{column_folder(column)}/generations"


def _numbers(cache: Cache, column: Column) -> list[int]:
    names = cache.store.names(_folder(column))
    return [int(name.removesuffix(".npz")) for name in names if NUMBER.fullmatch(name)]


def latest(cache: Cache, column: Column) -> Generation:
    """The newest generation, an empty one if there is none that this program knows."""
    numbers = _numbers(cache, column)
    if not numbers:
        return _empty(column)
    name = f"{_folder(column)}/{max(numbers):06d}.npz"
    try:
        return load(cache, column, name)
    except KeyError:  # of an older program: the commit records have it all
        return _empty(column)
    except ValueError as err:
        raise DataFault(f"--cache: {cache.store}: {name} {err}; run precompute --repair") from None


def load(cache: Cache, column: Column, name: str) -> Generation:
    """One generation. Raises `ValueError` if it has changed or is another column's,
    `KeyError` for another layout."""
    found = Generation.load(cache.store.read(name))
    if not np.char.startswith(found.index, f"{column_folder(column)}/".encode()).all():
        raise ValueError(f"is not of column {column.name}")
    return found


def _extended(cache: Cache, column: Column, plan: list[Part], known: Generation) -> Generation:
    """A generation and every commit that it lacks, in the order of the parts' names.

    Parts of another plan than the given one are left out, since how many samples they have is not known.
    """
    sizes = {part.name: part.samples for part in plan}
    have = {name.decode() for name in known.part.tolist()}

    def digested(part: str) -> list[Generation]:
        commit = cache.commit(column, part)
        if commit is None:  # withdrawn a moment ago
            return []
        arrays = part_arrays(column, commit, _index(cache, commit), sizes.get(part))
        return [Generation(**{**vars(_empty(column)), **arrays})]

    later = sorted(
        part
        for part in cache.committed(column) - have
        if part in sizes or part == NULL_PART or part.startswith(PROMPTS)
    )
    if not later:
        return known
    with ThreadPoolExecutor(max(4, cache.store.concurrency)) as pool:
        return _join([known, *(one for found in pool.map(digested, later) for one in found)])


def _index(cache: Cache, commit: Commit) -> PartIndex:
    try:
        return load_index(cache.store, commit)
    except (ValueError, FileNotFoundError) as err:
        what = str(err) if isinstance(err, ValueError) else f"{commit.index} is missing"
        where = f"--cache: {cache.store}: column {commit.column}, {commit.part}"
        raise DataFault(f"{where}: {what}; redo it with: precompute --repair") from None


def _empty(column: Column) -> Generation:
    count, ndim = len(column.fields), bucketed_field(column)[1]
    none = np.zeros(0, np.bytes_)
    numbers, counts = np.zeros(0, np.int32), np.zeros(0, np.int64)
    return Generation(
        part=none,
        samples=counts,
        rows=counts,
        index=none,
        index_hash=none,
        object=none.reshape(0, count),
        object_size=counts.reshape(0, count),
        field_bytes=counts.reshape(0, count),
        container=none,
        stored_bytes=counts,
        encode_seconds=np.zeros(0, np.float64),
        **dict.fromkeys(("lacking", "lacking_part", "low", "low_part", "shape_part"), numbers),
        low_hash=np.zeros(0, np.uint64),
        shape=np.zeros((0, ndim), np.int32),
        shape_samples=counts,
        lengths=np.zeros((count, 0), np.int64),
        prompt_lines=np.zeros(0, np.uint8),
        reject_lines=np.zeros(0, np.uint8),
    )


def _join(generations: Sequence[Generation]) -> Generation:
    """All of them, parts in the order of their names."""
    names = [field.name for field in fields(Generation) if field.name not in ("lengths", "reject_lines")]
    arrays = {name: np.concatenate([getattr(one, name) for one in generations]) for name in names}
    starts = np.cumsum([0, *(len(one.part) for one in generations)])[:-1]
    order = np.argsort(arrays["part"], kind="stable")
    place = np.argsort(order).astype(np.int32)  # old number → new number
    for name in EACH_PART:
        arrays[name] = arrays[name][order]
    for name, others in NUMBERED.items():
        counts = [len(getattr(one, name)) for one in generations]
        arrays[name] = place[arrays[name] + np.repeat(starts, counts)]
        by_part = np.argsort(arrays[name], kind="stable")
        for each in (name, *others):
            arrays[each] = arrays[each][by_part]
    longest = max(one.lengths.shape[1] for one in generations)
    lengths = np.zeros((len(generations[0].lengths), longest), np.int64)
    for one in generations:
        lengths[:, : one.lengths.shape[1]] += one.lengths
    rejects = packed(b"".join(unpacked(one.reject_lines) for one in generations))
    return Generation(**arrays, lengths=lengths, reject_lines=rejects)
