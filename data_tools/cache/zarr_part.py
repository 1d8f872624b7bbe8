"""A part as a zarr v3 group: one sharded array per field, one shard object per array.

Written by hand after the zarr v3 specification and its `sharding_indexed` and `crc32c` codecs: so the place
of every row is known without reading anything back, and a shard is written chunk by chunk. Any zarr v3
library opens the result (`tests/data_tools/test_zarr_part.py`).

With n samples and m rows:

    sample_index (n)             int32   position of the sample in the part's sample table
    row_offsets (n+1)            int64   sample i owns rows row_offsets[i] … row_offsets[i+1]-1
    <field> (m, *shape)                  attribute `dtype`; bfloat16 is in uint16
    <field> (items, *item_shape)         where shapes differ: rows end to end, (T, D) or flat of (C, h, w)
    <field>_offsets (m+1)        int64   then row j is items offsets[j] … offsets[j+1]-1
    <field>_shape (m, ndim)      int32   and, where more than the first dimension differs, has this shape

A shard is its inner chunks in order, each followed by the crc32c of its bytes, then the shard index:
(offset, length) of each chunk as little-endian uint64, and the index's own crc32c. Chunks are never
compressed (fp16 embeddings keep 92–94 % of their size) and always written, also where all zero.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data_tools.cache.fields import Field
from data_tools.cache.manifest import dump
from data_tools.cache.rows import PartRows, Placement, Put, row_shapes

CHUNK_BYTES = 2_500_000
"Size that inner chunks stay under, unless one item is larger."
SUFFIX = ".zarr"
CRC_BYTES = 4


class ZarrPart:
    """The container."""

    def write(self, put: Put, name: str, rows: PartRows) -> dict[str, Placement]:
        """Store the group `name`.zarr; where each field's rows lie in its objects."""
        group = name + SUFFIX
        placements = {field.name: _put_field(put, group, field, rows) for field in rows.fields}
        _put_array(put, f"{group}/sample_index", rows.sample_index, {})
        _put_array(put, f"{group}/row_offsets", rows.row_offsets, {})
        put(f"{group}/zarr.json", [group_metadata(rows.about)])
        return placements


def _put_field(put: Put, group: str, field: Field, rows: PartRows) -> Placement:
    """All rows of a field as one array, end to end where their shapes differ, and what tells them apart."""
    items, starts = rows.stacked(field)
    grid = _put_array(put, f"{group}/{field.name}", items, {"dtype": field.dtype})
    if field.varies:
        _put_array(put, f"{group}/{field.name}_offsets", starts, {})
    if field.bucketed:
        _put_array(put, f"{group}/{field.name}_shape", row_shapes(field, rows.rows), {})
    return Placement(
        object=f"{group}/{field.name}/{shard_key(field.item_shape)}",
        chunk_bytes=grid.chunk_bytes,
        gap_bytes=CRC_BYTES,
        offset=grid.offset(starts[:-1]),
    )


def _put_array(put: Put, name: str, items: NDArray[Any], attributes: dict[str, Any]) -> "ChunkGrid":
    item_shape = items.shape[1:]
    grid = ChunkGrid(len(items), int(np.prod(item_shape)) * items.itemsize)
    put(f"{name}/zarr.json", [array_metadata(grid, item_shape, items.dtype, attributes)])
    if len(items):
        put(f"{name}/{shard_key(item_shape)}", shard(grid, items))
    return grid


@dataclass(frozen=True)
class ChunkGrid:
    """How an array's items (entries along its first axis) lie in the shard object."""

    items: int
    item_bytes: int

    @property
    def chunk_items(self) -> int:
        """Items in each inner chunk: what a power of two holds, shared out so that few are padding."""
        most = 1 << int(math.log2(max(1, CHUNK_BYTES // self.item_bytes)))
        chunks = max(1, math.ceil(self.items / most))
        return max(1, math.ceil(self.items / chunks))

    @property
    def num_chunks(self) -> int:
        return -(-self.items // self.chunk_items)

    @property
    def chunk_bytes(self) -> int:
        return self.chunk_items * self.item_bytes

    def offset(self, item: NDArray[np.int64]) -> NDArray[np.int64]:
        """Byte in the object at which each item starts."""
        return item * self.item_bytes + item // self.chunk_items * CRC_BYTES


def array_metadata(
    grid: ChunkGrid, item_shape: tuple[int, ...], dtype: np.dtype[Any], attributes: dict[str, Any]
) -> bytes:
    """`zarr.json` of a sharded array; the shard is padded to whole chunks so that it is never rewritten."""
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    checked = [little, {"name": "crc32c"}]
    sharding = {
        "chunk_shape": [grid.chunk_items, *item_shape],
        "codecs": checked,
        "index_codecs": checked,
        "index_location": "end",
    }
    shard_items = max(1, grid.num_chunks) * grid.chunk_items
    return dump(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": [grid.items, *item_shape],
            "data_type": dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [shard_items, *item_shape]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
            "fill_value": 0,
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "attributes": attributes,
        }
    )


def group_metadata(attributes: dict[str, Any]) -> bytes:
    return dump({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def shard_key(item_shape: tuple[int, ...]) -> str:
    """Name of an array's only shard object, below the array's folder."""
    return "/".join(["c", "0", *("0" for _ in item_shape)])


def shard(grid: ChunkGrid, items: NDArray[Any]) -> Iterator[bytes]:
    """The bytes of a shard object, chunk by chunk; `items` is the whole array, (items, *item_shape)."""
    index = np.zeros((grid.num_chunks, 2), dtype="<u8")
    for number in range(grid.num_chunks):
        chunk = np.ascontiguousarray(items[number * grid.chunk_items : (number + 1) * grid.chunk_items])
        payload = chunk.tobytes().ljust(grid.chunk_bytes, b"\0")
        index[number] = number * (grid.chunk_bytes + CRC_BYTES), grid.chunk_bytes + CRC_BYTES
        yield payload
        yield _crc_bytes(payload)
    yield index.tobytes()
    yield _crc_bytes(index.tobytes())


def _crc_bytes(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(CRC_BYTES, "little")
