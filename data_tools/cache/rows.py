"""The rows of a part on their way into a container, and where the container put them.

A container (`zarr_part`; others follow the same protocol) stores the rows by calling
`put(object name, chunks of bytes)` and says where each row now lies.
"""

from collections.abc import Callable, Iterable, Sequence
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
        values, item_shape = self.values(field), field.item_shape
        starts = row_starts(field, self.rows)
        if not values:
            return np.zeros((0, *item_shape), dtype=field.storage), starts
        return np.concatenate([value.reshape(-1, *item_shape) for value in values]), starts


def row_starts(field: Field, rows: Sequence[Row]) -> NDArray[np.int64]:
    """With rows end to end: the item (entry along the first axis) each begins at, and the end, (m+1)."""
    return np.cumsum([0, *(field.items(row[field.name].shape) for row in rows)]).astype(np.int64)


def row_shapes(field: Field, rows: Sequence[Row]) -> NDArray[np.int32]:
    """The shape of each row of a field, (m, number of its dimensions)."""
    shapes = [row[field.name].shape for row in rows]
    return np.array(shapes, dtype=np.int32).reshape(len(rows), len(field.shape))


class Container(Protocol):
    def write(self, put: Put, name: str, rows: PartRows, /) -> dict[str, Placement]:
        """Store a part under `name` and a suffix; the placement of each field."""
