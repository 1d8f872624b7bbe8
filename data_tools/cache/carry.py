"""Rows that a new part takes over from older ones, where a changed sample's input to the column is the same.

Row by row, each checked against its crc32c: a part of changed samples may draw from many older parts. What is
not to be had, because the old part was never committed, its sample was rejected or its bytes are damaged, is
left to be encoded again.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from data_tools.cache.extents import FieldExtents, PartIndex, crc32c
from data_tools.cache.fields import Column, Field, Row
from data_tools.cache.manifest import Cache
from data_tools.cache.reads import coalesced, row_reads
from data_tools.cache.store import Store
from data_tools.cache.verify import load_index
from data_tools.errors import DataFault
from data_tools.sources import Sample


def was(column: Column, sample: Sample) -> str:
    """`part:position` of the sample whose rows of a column are also this one's; empty if there is none."""
    return sample.captions_was if column.name == "text" else sample.picture_was


def carried(cache: Cache, column: Column, samples: Mapping[int, Sample]) -> dict[int, list[Row]]:
    """The rows of those samples whose rows are in an older part of the column, by position."""
    wanted: dict[str, list[tuple[int, int]]] = {}
    for position, sample in samples.items():
        part, _, old = was(column, sample).rpartition(":")
        if part:
            wanted.setdefault(part, []).append((int(old), position))
    found: dict[int, list[Row]] = {}
    with ThreadPoolExecutor(cache.store.concurrency) as pool:
        for rows in pool.map(lambda part: _of_part(cache, column, part, wanted[part]), wanted):
            found |= rows
    return found


def _of_part(cache: Cache, column: Column, part: str, pairs: list[tuple[int, int]]) -> dict[int, list[Row]]:
    """`pairs`: position in the old part, position in the new one."""
    try:
        commit = cache.commit(column, part)
        if commit is None:
            return {}
        index = load_index(cache.store, commit)
        places = {position: place for place, position in enumerate(index.sample_index.tolist())}
        pairs = sorted(pair for pair in pairs if pair[0] in places)
        spans = [index.row_offsets[places[old] : places[old] + 2].tolist() for old, _ in pairs]
        numbers = np.array([row for span in spans for row in range(*span)], dtype=np.int64)
        rows = iter(_rows(cache.store, column, index, numbers))
        return {new: [next(rows) for _ in range(*span)] for (_, new), span in zip(pairs, spans)}
    except (DataFault, ValueError, FileNotFoundError):  # damaged: the encoder makes them again
        return {}


def _rows(store: Store, column: Column, index: PartIndex, rows: NDArray[np.int64]) -> list[Row]:
    """Some rows of a part. Raises `ValueError` for one that is not what was committed."""
    values = [_values(store, about, index.fields[about.name], rows) for about in column.fields]
    names = [about.name for about in column.fields]
    return [dict(zip(names, row)) for row in zip(*values)]


def _values(
    store: Store, about: Field, extents: FieldExtents, rows: NDArray[np.int64]
) -> list[NDArray[np.generic]]:
    values = [np.empty(shape, about.storage) for shape in extents.shape[rows].tolist()]
    places = [value.reshape(-1).view(np.uint8) for value in values]
    chunk, gap = (np.full(len(rows), size) for size in (extents.chunk_bytes, extents.gap_bytes))
    reads = row_reads(np.zeros(len(rows), np.int64), extents.offset[rows], places, chunk, gap)
    for _, offset, buffers in coalesced(reads, store.coalesce_bytes) if store.coalesce_bytes else reads:
        store.read_into(extents.object, offset, buffers)  # an object that ends too early fails the check
    if [crc32c(value) for value in values] != extents.crc32c[rows].tolist():
        raise ValueError(f"{about.name}: crc32c differs")
    return values
