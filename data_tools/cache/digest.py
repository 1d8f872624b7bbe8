"""One commit record with its extent index as the arrays of a generation of that part alone."""

import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.cache.extents import PartIndex
from data_tools.cache.fields import Column
from data_tools.cache.manifest import Commit
from data_tools.cache.payload import container_of

LOW = 1 << 59
"One hash in 32 lies below."
NUMBERED = {
    "lacking_part": ("lacking",),
    "low_part": ("low", "low_hash"),
    "shape_part": ("shape", "shape_samples"),
}
"Lists over all parts: the array that numbers the part of each entry → the arrays beside it."


def part_arrays(
    column: Column, commit: Commit, index: PartIndex, planned: int | None
) -> dict[str, NDArray[Any]]:
    """`planned`: samples that the plan gives the part, None if it is not in there.

    Arrays in which such a part has nothing are left out.
    """
    sizes = {item.name: item.size for item in commit.objects}
    hashes = {item.name: item.xxh3_128 for item in commit.objects}
    names = [index.fields[field.name].object for field in column.fields]
    arrays: dict[str, Any] = {
        "part": np.array([commit.part], np.bytes_),
        "samples": np.array([commit.samples], np.int64),
        "rows": np.array([commit.rows], np.int64),
        "index": np.array([commit.index], np.bytes_),
        "index_hash": np.array([hashes[commit.index]], np.bytes_),
        "object": np.array([names], np.bytes_),
        "object_size": np.array([[sizes.get(name, 0) for name in names]], np.int64),
        "field_bytes": np.array([[commit.field_bytes[f.name] for f in column.fields]], np.int64),
        "container": np.array([container_of(commit)], np.bytes_),
        "stored_bytes": np.array([sum(sizes.values())], np.int64),
        "encode_seconds": np.array([commit.encode_seconds], np.float64),
    }
    if commit.prompts:
        arrays["prompt_lines"] = _lines([[commit.part, commit.prompts]])
    if planned is None:
        return arrays
    low = index.key_hash < np.uint64(LOW)
    arrays["lacking"] = np.setdiff1d(np.arange(planned, dtype=np.int32), index.sample_index)
    arrays |= {"low": index.sample_index[low], "low_hash": index.key_hash[low]}
    arrays["lengths"] = _lengths(column, index)
    arrays["shape"], arrays["shape_samples"] = _shapes(column, index)
    for number, others in NUMBERED.items():
        arrays[number] = np.zeros(len(arrays[others[0]]), np.int32)
    if commit.rejects:
        lines = _lines([{"part": commit.part, **reject} for reject in commit.rejects])
        arrays["reject_lines"] = packed(lines.tobytes())
    return arrays


def packed(lines: bytes) -> NDArray[np.uint8]:
    """Compressed; nothing for nothing."""
    return np.frombuffer(zlib.compress(lines) if lines else b"", np.uint8)


def unpacked(array: NDArray[np.uint8]) -> bytes:
    """What was `packed`."""
    return zlib.decompress(array.tobytes()) if len(array) else b""


def _lines(items: Sequence[Any]) -> NDArray[np.uint8]:
    """A line of JSON each, so that two arrays end to end are one."""
    text = "".join(f"{json.dumps(item)}\n" for item in items)  # ASCII: no other line breaks
    return np.frombuffer(text.encode(), np.uint8)


def _lengths(column: Column, index: PartIndex) -> NDArray[np.int64]:
    """(F, L) rows of each length; zeros for a field that is not ragged."""
    counts = [
        np.bincount(index.fields[field.name].shape[:, 0] if field.ragged else np.zeros(0, np.int32))
        for field in column.fields
    ]
    longest = max(map(len, counts))
    return np.stack([np.pad(count, (0, longest - len(count))) for count in counts]).astype(np.int64)


def bucketed_field(column: Column) -> tuple[str | None, int]:
    """The bucketed field and its number of dimensions; (None, 0) without one. No column has two."""
    return next(((field.name, len(field.shape)) for field in column.fields if field.bucketed), (None, 0))


def _shapes(column: Column, index: PartIndex) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The shapes (K, ndim) of the samples' first rows, and how many samples have each."""
    name, _ = bucketed_field(column)
    if name is None:
        return np.zeros((0, 0), np.int32), np.zeros(0, np.int64)
    return np.unique(index.fields[name].shape[index.row_offsets[:-1]], axis=0, return_counts=True)
