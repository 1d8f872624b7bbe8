"""Arrays of an index or a generation, written by numpy and read without its evaluation of headers."""

import gc
import io
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_tools.cache import npz

ARRAYS = {
    "numbers": np.arange(7, dtype=np.int64),
    "table/crc32c": np.arange(6, dtype=np.uint32).reshape(2, 3),
    "turned": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "names": np.array([b"a", b"part-00001"]),
    "no_names": np.zeros(0, np.bytes_),
    "no_columns": np.zeros((3, 0), np.int32),
    "one": np.array(5, np.uint8),
    "flags": np.array([True, False]),
}


def test_arrays_come_back_as_numpy_reads_them():
    data = npz.dumps(ARRAYS)
    found = npz.loads(data)
    with np.load(io.BytesIO(data), allow_pickle=False) as wanted:
        assert sorted(found) == sorted(wanted.files) == sorted(ARRAYS)
        for name in ARRAYS:
            np.testing.assert_array_equal(found[name], wanted[name], strict=True)
            assert not found[name].flags.writeable


@pytest.mark.parametrize(
    "value", [np.array([{}], object), np.zeros(2, [("a", "i4")]), np.array([1 + 2j]), np.array(["text"])]
)
def test_what_is_no_plain_array_is_refused(value):
    buffer = io.BytesIO()
    np.savez(buffer, value=value)
    with pytest.raises(ValueError, match=r"value\.npy is not an array of numbers"):
        npz.loads(buffer.getvalue())


class Finalized:
    """Lets another thread run in the middle of an allocation, whenever the collector comes by."""

    def __init__(self) -> None:
        self.cycle = self

    def __del__(self) -> None:
        time.sleep(0)  # another thread runs


def test_many_threads_read_at_once():
    """With numpy.load several of these reads fail on CPython 3.11.7."""
    data = npz.dumps({f"array-{number}": np.arange(3) for number in range(20)})

    def read(_: int) -> int:
        Finalized()
        return sum(int(values.sum()) for values in npz.loads(data).values())

    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(5)
    try:
        with ThreadPoolExecutor(16) as pool:
            assert set(pool.map(read, range(400))) == {60}
    finally:
        sys.setswitchinterval(interval)
        gc.set_threshold(*threshold)
