"""Reading ahead is bounded in bytes, however slow the training step is."""

import threading

import numpy as np
import pytest
import torch

from data_tools.cache.reader import CacheReader
from tests.data_tools.caches import COLUMNS, build
from train.batches import Slice, TrainingBatches
from train.prefetch import Prefetch, num_bytes

CPU = torch.device("cpu")
STEPS = 40


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    root = tmp_path_factory.mktemp("prefetch") / "cache"
    build(root)
    return root


class Counting:
    """The batches of a cache; how many bytes of them have been made, and of the largest."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches, self.made, self.largest = batches, 0, 0
        self.read = batches.read
        batches.read = self._read

    def _read(self, step, accumulation_round):
        batch = self.read(step, accumulation_round)
        self.largest = max(self.largest, num_bytes(batch))
        self.made += num_bytes(batch)
        return batch


def batches(cache, limit) -> tuple[TrainingBatches, CacheReader]:
    reader = CacheReader(cache, COLUMNS)
    none = np.zeros(0, dtype=np.int64)
    return TrainingBatches(reader, none, Slice(0, 1, 4, 1), 3, CPU, prefetch_bytes=limit), reader


def settled(prefetch: Prefetch) -> None:
    """Return when the reading thread waits for room or has ended: from then on it does nothing by itself."""
    for thread in threading.enumerate():
        while thread.name == "prefetch" and thread.is_alive() and not prefetch._changed._waiters:
            thread.join(timeout=0.001)


@pytest.mark.parametrize("limit", [1, 6_000, 20_000])
def test_bytes_in_flight_stay_below_the_limit_and_one_batch(limit, cache):
    there, reader = batches(cache, limit)
    counting = Counting(there)
    taken, most = 0, 0
    stream = there.iterate(0, STEPS)
    for batch, _ in stream:
        taken += num_bytes(batch)
        settled(there._prefetch)
        assert there._prefetch.waiting_bytes <= max(limit, counting.largest)
        assert counting.made - taken <= max(limit, counting.largest) + counting.largest
        most = max(most, there._prefetch.waiting_bytes)
    assert taken == counting.made
    assert most > limit - counting.largest  # it does read ahead, as far as it may
    reader.close()


def test_batch_larger_than_the_limit_passes_alone(cache):
    there, reader = batches(cache, 1)
    found = list(there.iterate(0, 5))
    assert len(found) == 5
    assert min(num_bytes(batch) for batch, _ in found) > 1
    reader.close()


def test_closing_ends_a_thread_that_waits_for_room(cache):
    there, reader = batches(cache, 1)
    stream = there.iterate(0, STEPS)
    next(stream)
    settled(there._prefetch)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    again = list(there.iterate(0, 2))  # what was left in it is gone
    assert torch.equal(again[0][0]["image_embeds"], there.read(0, 0)["image_embeds"])
    assert len(again) == 2
    reader.close()
