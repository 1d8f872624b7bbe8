"""The extent index of a part: where each row of each field lies, and its checksum.

An uncompressed `.npz` beside the part, read without pickle. With n samples and m rows:

    sample_index (n)    int32   position of the sample in the part's sample table
    key_hash (n)        uint64  xxh3-64 of the sample's key; decides what is held out for validation
    row_offsets (n+1)   int64   sample i owns rows row_offsets[i] … row_offsets[i+1]-1 (captions, views)
    <field>/offset (m)  int64   byte in the field's object where the row starts
    <field>/shape (m,k) int32   the row's shape
    <field>/crc32c (m)  uint32  of the row's bytes

    places              uint8   JSON: field → [object, chunk_bytes, gap_bytes]

An object's bytes are interrupted: after every `chunk_bytes` stand `gap_bytes` that belong to no row (the
crc32c of a zarr chunk). A row that runs over such a gap is read with one scattered read.
"""

import json
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from data_tools.cache import npz


def crc32c(data: NDArray[Any]) -> int:
    """crc32c of an array's bytes; the array must be contiguous."""
    return int(google_crc32c.value(data.reshape(-1).view(np.uint8)))


@dataclass(frozen=True)
class FieldExtents:
    object: str
    "Name of the object that holds the rows, relative to the cache."
    chunk_bytes: int
    gap_bytes: int
    offset: NDArray[np.int64]
    shape: NDArray[np.int32]
    crc32c: NDArray[np.uint32]


@dataclass(frozen=True)
class PartIndex:
    sample_index: NDArray[np.int32]
    key_hash: NDArray[np.uint64]
    row_offsets: NDArray[np.int64]
    fields: dict[str, FieldExtents]

    def dump(self) -> bytes:
        arrays: dict[str, NDArray[Any]] = {
            "sample_index": self.sample_index,
            "key_hash": self.key_hash,
            "row_offsets": self.row_offsets,
        }
        places = {}
        for name, extents in self.fields.items():
            places[name] = [extents.object, extents.chunk_bytes, extents.gap_bytes]
            arrays[f"{name}/offset"] = extents.offset
            arrays[f"{name}/shape"] = extents.shape
            arrays[f"{name}/crc32c"] = extents.crc32c
        arrays["places"] = np.frombuffer(json.dumps(places).encode(), dtype=np.uint8)
        return npz.dumps(arrays)

    @classmethod
    def load(cls, data: bytes) -> "PartIndex":
        """Raises `ValueError` for anything that is not an index."""
        try:
            arrays = npz.loads(data)
            places = json.loads(arrays["places"].tobytes())
            fields = {
                name: FieldExtents(
                    object=place[0],
                    chunk_bytes=place[1],
                    gap_bytes=place[2],
                    offset=arrays[f"{name}/offset"],
                    shape=arrays[f"{name}/shape"],
                    crc32c=arrays[f"{name}/crc32c"],
                )
                for name, place in places.items()
            }
            return cls(arrays["sample_index"], arrays["key_hash"], arrays["row_offsets"], fields)
        except Exception as err:  # zipfile and numpy raise many kinds on damaged bytes
            raise ValueError(f"not an extent index: {err}") from None
