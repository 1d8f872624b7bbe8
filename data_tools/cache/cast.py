"""Stored values in another stored dtype. bfloat16 stands as the uint16 with the same bits."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.cache.fields import DTYPES, Column, finite


def cast(value: NDArray[Any], found: str, wanted: str) -> NDArray[Any]:
    """`value` of stored dtype `found` as `wanted`, both names of `DTYPES`; any shape.

    Rounds to nearest, ties to even, once. Raises `ValueError` if a finite value becomes infinite.
    """
    if found == wanted:
        return value
    exact = to_float32(value, found)
    if wanted == "bfloat16":
        result = _round_to_bfloat16(exact)
    else:
        with np.errstate(over="ignore"):  # told apart below
            result = exact.astype(DTYPES[wanted])
    if not finite(result, wanted):
        largest = float(np.abs(exact).max())
        raise ValueError(f"{largest:.6g} is too large for {wanted}")
    return result


def to_float32(value: NDArray[Any], found: str) -> NDArray[np.float32]:
    """The same numbers in float32, which holds every value of all three dtypes."""
    if found == "bfloat16":
        return (value.astype(np.uint32) << 16).view(np.float32)
    return value.astype(np.float32)


def recast_column(column: Column, dtype: str | None) -> Column:
    """The declaration of a column stored in another dtype; only the identity's `dtype` differs.

    It names what the values were rounded to before: float32 from float16 is not what a float32 run makes.
    """
    if dtype is None or all(field.dtype == dtype for field in column.fields):
        return column
    before = ",".join(dict.fromkeys(field.dtype for field in column.fields))
    return replace(
        column,
        fields=tuple(replace(field, dtype=dtype) for field in column.fields),
        identity={**column.identity, "dtype": f"{dtype} from {column.identity.get('dtype', before)}"},
    )


def _round_to_bfloat16(value: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper half of the bits, after an addition that carries if the lower half rounds up."""
    bits = value.view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded: NDArray[np.uint16] = ((bits + half) >> np.uint32(16)).astype(np.uint16)
    return rounded
