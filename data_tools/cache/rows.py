"""The rows of a part on their way into a container, and where the container put them.

A container (`zarr_part`; others follow the same protocol) stores the rows by calling
`put(object name, chunks of bytes)` and says where each row now lies.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data_tools.cache.fields import Field, Row

Put = Callable[[str, Iterable[bytes]], None]


@dataclass(frozen=True)
class Placement:
    """Where a container put the rows of one field."""

    object: str
    chunk_bytes: int
    "After so many bytes of payload the object has a gap; 0: never."
    gap_bytes: int
    offset: NDArray[np.int64]
    "Byte in the object at which each row starts."


@dataclass(frozen=True)
class PartRows:
    """All rows of a part, in order; n samples, m rows."""

    fields: tuple[Field, ...]
    rows: list[Row]
    keys: list[str]
    "Of the samples."
    sample_index: NDArray[np.int32]
    "(n) position in the part's sample table"
    row_offsets: NDArray[np.int64]
    "(n+1) sample i owns rows row_offsets[i] … row_offsets[i+1]-1"
    about: dict[str, str]
    "column, part, identity"

    def values(self, field: Field) -> list[NDArray[Any]]:
        """The rows of one field, each contiguous."""
        return [np.ascontiguousarray(row[field.name]) for row in self.rows]

    def stacked(self, field: Field) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """The rows of a field end to end, (items, *item_shape), and the item each begins at, (m+1)."""
        values = self.values(field)
        lengths = [len(value) if field.ragged else 1 for value in values]
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        if not values:
            return np.zeros((0, *field.item_shape), dtype=field.storage), starts
        return np.concatenate(values) if field.ragged else np.stack(values), starts


class Container(Protocol):
    def write(self, put: Put, name: str, rows: PartRows, /) -> dict[str, Placement]:
        """Store a part under `name` and a suffix; the placement of each field."""
