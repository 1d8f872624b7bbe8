"""Several threads read one cache: a trainer's read-ahead and its validation do."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.cache import store
from data_tools.cache.reader import CacheReader
from data_tools.cache.records import SHARED_BATCHES, SLOW_BATCHES
from tests.data_tools.caches import build


def test_threads_that_push_out_each_others_files_read_the_right_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "OPEN_FILES", 2)
    made = build(tmp_path, count=24, part_size=2)
    expected = np.array([made["image"][f"k{i}"][0]["image_embeds"] for i in range(24)])
    reader = CacheReader(tmp_path, ["image"])
    rows = reader.rows("image")[0]

    def read(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        samples = [rng.integers(0, 24, 16) for _ in range(100)]
        return all(
            np.array_equal(reader.gather("image", rows[s])["image_embeds"], expected[s]) for s in samples
        )

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))


class FarStore(store.LocalStore):
    """A folder whose every read takes a millisecond, as over a network."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.threads: set[int] = set()

    def read_into(self, name: str, offset: int, buffers: Sequence[Any]) -> int:
        self.threads.add(threading.get_ident())
        threading.Event().wait(0.001)
        return super().read_into(name, offset, buffers)


def test_where_reads_wait_threads_share_the_next_batch(tmp_path: Path) -> None:
    made = build(tmp_path)
    far = FarStore(tmp_path)
    reader = CacheReader(far, ["image"])
    rows = reader.rows("image")[0][:8]
    for _ in range(SLOW_BATCHES):
        reader.gather("image", rows)
    assert len(far.threads) == 1  # which has found that reads wait
    for _ in range(SHARED_BATCHES):
        far.threads.clear()
        batch = reader.gather("image", rows)
        assert len(far.threads) > 2
    far.threads.clear()
    reader.gather("image", rows)
    assert len(far.threads) == 1  # to see if they still do
    wanted = np.stack([made["image"][f"k{i}"][0]["image_embeds"] for i in range(8)])
    assert np.array_equal(batch["image_embeds"], wanted)
