"""Arrays in an uncompressed `.npz` and back.

`numpy.load` evaluates each header as Python source, and several threads that do so at once can fail in
CPython 3.11 (python/cpython#106905: "AST constructor recursion depth mismatch"). The headers that numpy
itself writes for plain arrays have one form; that form is read here and nothing else, no pickled objects.
"""

import io
import re
import zipfile
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '([<|][biufS]\d+)', 'fortran_order': (False|True), "
    rb"'shape': \(([\d, ]*)\), \} *\n",
    re.DOTALL,
)
"Of an `.npy` of version 1: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html"


def dumps(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def loads(data: bytes | memoryview) -> dict[str, NDArray[Any]]:
    """Read-only arrays. Raises `ValueError` for a member that is no plain array, and for damaged bytes
    what zipfile raises.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        return {name.removesuffix(".npy"): _array(name, file.read(name)) for name in file.namelist()}


def _array(name: str, data: bytes) -> NDArray[Any]:
    found = HEADER.match(data)
    if not found:
        raise ValueError(f"{name} is not an array of numbers")
    dtype, fortran, shape = (part.decode() for part in found.groups())
    lengths = [int(length) for length in shape.split(",") if length.strip()]
    order: Literal["F", "C"] = "F" if fortran == "True" else "C"
    values: NDArray[Any] = np.ndarray(lengths, np.dtype(dtype), data, found.end(), order=order)
    return values
