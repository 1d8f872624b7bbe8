"""What a cache holds: columns, their fields, their shapes and dtypes.

A *column* is what one frozen encoder made. Widths (D, C) come from the models' configs.

| column      | rows of a sample     | field                          | shape           |
|-------------|----------------------|--------------------------------|-----------------|
| `image`     | one (later: views)   | `image_embeds`                 | (D,)            |
| `text`      | one for each caption | `prompt_embeds`                | (D,)            |
|             |                      | `text_encoder_hidden_states`   | (n_tokens, D)   |
| `latents@R` | one (later: views)   | `latents`                      | (C, h, w)       |

A dimension given by name differs from row to row; rows of such a field are stored one after the other,
never padded. bfloat16 is stored as the uint16 with the same bits.
"""

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
    "Of one row. A name stands for a dimension that differs between rows; only the first may."

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"{self.name}: dtype {self.dtype!r}, wanted one of {', '.join(DTYPES)}")
        assert not any(isinstance(dim, str) for dim in self.shape[1:]), self.shape

    @property
    def ragged(self) -> str | None:
        """Name of the dimension that differs between rows, or None."""
        return self.shape[0] if isinstance(self.shape[0], str) else None

    @property
    def item_shape(self) -> tuple[int, ...]:
        """Shape of one entry along the stored array's first axis: a whole row, or one token of it."""
        return tuple(dim for dim in self.shape if isinstance(dim, int))

    @property
    def item_bytes(self) -> int:
        return int(np.prod(self.item_shape)) * self.storage.itemsize

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
