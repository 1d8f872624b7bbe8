"""Runs of neighbours that are kept, where a request is dear."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.cache.cells import Cells
from data_tools.cache.reader import CacheReader
from data_tools.cache.reads import coalesced
from data_tools.cache.store import LocalStore
from data_tools.cache.tar_part import TarPart
from data_tools.cache.zarr_part import ZarrPart
from data_tools.errors import DataFault
from tests.data_tools import caches


class CountingStore(LocalStore):
    """A folder that is read like an object store; what was asked of the parts is noted."""

    concurrency = 4
    coalesce_bytes = 64

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.requests: list[tuple[str, int]] = []

    def read_into(self, name: str, offset: int, buffers: Sequence[Any]) -> int:
        self.requests.append((name, offset))
        return super().read_into(name, offset, buffers)


@pytest.mark.parametrize("container", [ZarrPart(), TarPart(4)], ids=["zarr", "tar"])
@pytest.mark.parametrize("buckets", [(), caches.BUCKETS], ids=["square", "buckets"])
def test_rows_through_runs_are_the_rows(
    tmp_path: Path, container: Any, buckets: Sequence[tuple[int, int]]
) -> None:
    caches.build(tmp_path, buckets=buckets, container=container)
    kept = CacheReader(CountingStore(tmp_path), caches.COLUMNS, cells=Cells(3))
    plain = CacheReader(tmp_path, caches.COLUMNS)
    rng = np.random.default_rng(0)
    for column in caches.COLUMNS:
        every = np.arange(len(plain.rows(column)[0]) if column != "text" else 25)
        for _ in range(5):
            rows = rng.choice(every, 1 if buckets and column == "latents@24" else 8)
            for name, value in plain.gather(column, rows).items():
                assert np.array_equal(kept.gather(column, rows)[name], value), (column, name)


def test_a_run_is_one_request_however_many_batches_take_from_it(tmp_path: Path) -> None:
    caches.build(tmp_path)
    store = CountingStore(tmp_path)
    reader = CacheReader(store, ["image"], cells=Cells(5))
    rows = reader.rows("image")[0]
    for row in rows[::-1]:
        reader.gather("image", np.array([row]))
    assert len(store.requests) == 3  # parts of 5, 5 and 4 samples


def test_a_damaged_row_of_a_run_is_refused_though_another_was_asked_for(tmp_path: Path) -> None:
    caches.build(tmp_path)
    store = CountingStore(tmp_path)
    reader = CacheReader(store, ["image"], cells=Cells(5))
    rows = reader.rows("image")[0]
    reader.gather("image", rows[:1])
    (path,) = tmp_path.glob("columns/image/*/parts/part-00001-*.zarr/image_embeds/c/0/0")
    data = bytearray(path.read_bytes())
    data[2] ^= 1
    path.write_bytes(data)
    store.close()
    with pytest.raises(DataFault, match="part-00001: image_embeds: crc32c of row 0 differs"):
        reader.gather("image", rows[9:10])


def run(size: int) -> list[np.ndarray]:
    return [np.zeros(size, dtype=np.uint8)]


def test_runs_used_longest_ago_are_let_go_first_and_memory_stays_within_the_bound() -> None:
    cells = Cells(1, max_bytes=30)
    for number in range(3):
        cells.put(("f", 0, number), run(10))
    assert cells.get(("f", 0, 0)) is not None  # now the most recent
    cells.put(("f", 0, 3), run(10))
    assert cells.get(("f", 0, 1)) is None
    assert [cells.get(("f", 0, n)) is not None for n in (0, 2, 3)] == [True] * 3
    assert cells.num_bytes == 30
    cells.put(("f", 0, 3), run(4))  # in the place of the old one
    assert cells.num_bytes == 24


def test_a_run_larger_than_the_bound_is_kept_alone() -> None:
    cells = Cells(1, max_bytes=30)
    cells.put(("f", 0, 0), run(10))
    cells.put(("f", 0, 1), run(100))
    assert cells.get(("f", 0, 0)) is None
    assert cells.get(("f", 0, 1)) is not None


def test_rows_far_apart_and_more_than_one_request_may_hold_are_asked_for_apart() -> None:
    buffers = [np.zeros(6 << 20, dtype=np.uint8) for _ in range(4)]
    size = 6 << 20
    near = [(0, number * size, (buffer,)) for number, buffer in enumerate(buffers)]
    assert [len(buffers) for _, _, buffers in coalesced(near, 0)] == [2, 2]  # at most LARGEST_READ
    apart = [(0, 0, (buffers[0],)), (0, size + 11, (buffers[1],)), (1, size, (buffers[2],))]
    assert [offset for _, offset, _ in coalesced(apart, 10)] == [0, size + 11, size]
    assert [len(buffers) for _, _, buffers in coalesced(apart, 11)] == [3, 1]  # with what lies between
