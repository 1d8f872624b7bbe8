"""What a cache holds: columns, their fields, their shapes and dtypes.

A *column* is what one frozen encoder made. Widths (D, C) come from the models' configs.

| column      | rows of a sample     | field                          | shape           |
|-------------|----------------------|--------------------------------|-----------------|
| `image`     | one for each view    | `image_embeds`                 | (D,)            |
| `text`      | one for each caption | `prompt_embeds`                | (D,)            |
|             |                      | `text_encoder_hidden_states`   | (n_tokens, D)   |
| `latents@R` | one for each view    | `latents`                      | (C, h, w)       |

A dimension given by name differs from row to row: `n_tokens`, and `h` and `w` of a column with buckets. Rows
of such a field are stored one after the other, never padded. In a batch a first dimension is padded to the
longest (*ragged*); where a later one differs (*bucketed*), all rows of a batch must have one shape. bfloat16
is stored as the uint16 with the same bits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

DTYPES: dict[str, np.dtype[Any]] = {
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype("<u2"),
    "float32": np.dtype("<f4"),
}
"Name of a stored dtype → the numpy dtype that holds its bits."

Row = dict[str, NDArray[Any]]
"The fields of one row, by name."


@dataclass(frozen=True)
class Field:
    name: str
    dtype: str
    "One of `DTYPES`."
    shape: tuple[int | str, ...]
    "Of one row. A name stands for a dimension that differs between rows."

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.name}: dtype {self.dtype!r}, wanted one of {', '.join(DTYPES)}")

    @property
    def ragged(self) -> str | None:
        """Name of the first dimension if that is the only one that differs between rows, or None."""
        return str(self.shape[0]) if self._named == 1 else None

    @property
    def bucketed(self) -> bool:
        """True if a later dimension differs between rows: they cannot be padded into one batch."""
        return self._named > 1

    @property
    def varies(self) -> bool:
        """True if any dimension differs between rows: they are stored end to end, with their offsets."""
        return self._named > 0

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one entry along the stored array's first axis: what follows the last named dimension.

        A whole row where every row has one shape, one token of a ragged row, one value of a (C, h, w) bucket.
        """
        return tuple(int(dim) for dim in self.shape[self._named :])

    def items(self, shape: Sequence[int]) -> int:
        """Entries along the stored array's first axis of a row of this shape."""
        return math.prod(shape[: self._named])

    @property
    def _named(self) -> int:
        """Number of dimensions up to and including the last one given by name."""
        return max((place for place, dim in enumerate(self.shape, 1) if isinstance(dim, str)), default=0)

    @property
    def item_bytes(self) -> int:
        return math.prod(self.item_shape) * self.storage.itemsize

    @property
    def storage(self) -> np.dtype[Any]:
        return DTYPES[self.dtype]

    def check(self, value: NDArray[Any]) -> None:
        """Raises `ValueError` unless `value` is one row of this field with finite values."""
        fits = value.dtype == self.storage and len(value.shape) == len(self.shape)
        fits = fits and all(
            isinstance(want, str) or want == got for want, got in zip(self.shape, value.shape)
        )
        if not fits:
            raise ValueError(
                f"{self.name}: found {value.dtype}{value.shape}, wanted {self.dtype}{self.shape}"
            )
        if not finite(value, self.dtype):
            raise ValueError(f"{self.name}: NaN or infinity")


def finite(value: NDArray[Any], dtype: str) -> bool:
    """True if no element is NaN or infinite."""
    if dtype == "bfloat16":
        return not ((value & 0x7F80) == 0x7F80).any()  # exponent all ones
    return bool(np.isfinite(value).all())


@dataclass(frozen=True)
class Column:
    """A column's declaration: its fields and what decides whether it may be reused."""

    name: str
    "`image`, `text` or `latents@R`."
    fields: tuple[Field, ...]
    identity: dict[str, Any]
    "See `data_tools.cache.identity`."
    model: dict[str, str]
    "The model repository, as a default for trainers: {`hub`: id} or {`path`: relative to the cache}."
    libraries: dict[str, str]
    "Versions that made it; recorded, never compared."

    @property
    def has_null(self) -> bool:
        """True for what a pipeline conditions on: such a column also has a null condition."""
        return self.name in ("image", "text")

    def to_json(self) -> dict[str, Any]:
        fields = [{"name": f.name, "dtype": f.dtype, "shape": list(f.shape)} for f in self.fields]
        return {
            "column": self.name,
            "fields": fields,
            "identity": self.identity,
            "model": self.model,
            "libraries": self.libraries,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Column":
        fields = tuple(Field(f["name"], f["dtype"], tuple(f["shape"])) for f in data["fields"])
        return cls(data["column"], fields, data["identity"], data["model"], data["libraries"])
