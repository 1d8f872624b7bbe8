"""Caches in their shares, buckets one to a batch; every stream once an epoch."""

import math

import numpy as np
import pytest

from data_tools.cache.interleave import RUN
from data_tools.cache.order import Order
from data_tools.cache.stream import Blocks
from tests.data_tools.orders import SMALL, mixed, together

BLOCKS = pytest.mark.parametrize("blocks", [None, SMALL], ids=["global", "blocks"])


def streams_of(order: Order, steps: int) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """Samples and epochs that the first steps draw of each (cache, bucket)."""
    batches = [order.batch(step) for step in range(steps)]
    found = {}
    for bucket in sorted({batch.bucket for batch in batches}):
        drawn = together([batch for batch in batches if batch.bucket == bucket])
        for cache in np.unique(drawn.cache).tolist():
            mine = drawn.cache == cache
            found[cache, bucket] = drawn.sample[mine], drawn.epoch[mine]
    return found


@BLOCKS
@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ([[50]], None),
        ([[50], [20]], None),
        ([[50], [20], [1]], [None, 0.3, 0.01]),
        ([[50, 30, 7]], None),
        ([[50, 0, 7], [0, 90, 13]], None),
        ([[50, 0, 7], [0, 90, 13], [3, 3, 3]], [2.0, None, 0.5]),
    ],
)
def test_every_stream_draws_each_sample_once_an_epoch(
    blocks: Blocks | None, counts: list[list[int]], weights: list[float | None] | None
) -> None:
    found = streams_of(mixed(counts, 8, 1, weights=weights, blocks=blocks), 200)
    assert set(found) == {(c, b) for c, row in enumerate(counts) for b, count in enumerate(row) if count}
    complete = 0
    for (cache, bucket), (samples, epochs) in found.items():
        assert samples.max() < counts[cache][bucket]
        # lanes are within 2 * (RUN / 4 + 2) of each other, and trade places within a run
        over = (len(samples) - (blocks.streams if blocks else 1) * 2 * RUN) // counts[cache][bucket]
        complete += max(0, over)
        for epoch in range(over):
            assert sorted(samples[epochs == epoch]) == list(range(counts[cache][bucket]))
        seen = set(zip(samples.tolist(), epochs.tolist()))
        assert len(seen) == len(samples)
    assert complete >= 10


def test_the_union_of_caches_is_one_epoch_of_all() -> None:
    """Without weights; all that an epoch is short of is what runs of the mix trade at its end."""
    counts = [[3000], [1000], [96]]
    drawn = streams_of(mixed(counts, 64), 4096 // 64)
    for (cache, _), (samples, epochs) in drawn.items():
        assert abs(len(samples) - counts[cache][0]) <= 2
        assert (epochs == 0).mean() > 0.99
    assert sum(len(samples) for samples, _ in drawn.values()) == 4096


@BLOCKS
@pytest.mark.parametrize("weights", [[1.0, 0.3], [0.5, 0.25, 0.25], [1.0, 0.01, 3.0, 0.2, 0.2]], ids=str)
def test_shares_of_caches_are_kept_at_every_batch(weights: list[float], blocks: Blocks | None) -> None:
    """Whatever the sizes of the caches are; in block order for each lane."""
    counts = [[50 + 400 * number] for number in range(len(weights))]
    order = mixed(counts, 32, weights=weights, blocks=blocks)
    cache = np.stack([order.batch(step).cache for step in range(100)])  # (steps, 32)
    found = np.cumsum([np.bincount(row, minlength=len(weights)) for row in cache], axis=0)
    exact = 32 * np.arange(1, 101)[:, None] * np.array(weights) / sum(weights)
    lanes = 1 if blocks is None else blocks.streams
    assert np.abs(found - exact).max() <= lanes * (RUN / 4 + math.ceil(math.log2(len(weights))))
    if lanes == 1:  # a batch of whole runs has its share
        assert np.abs(found - exact).max() <= math.ceil(math.log2(len(weights)))


@BLOCKS
def test_a_cache_is_at_any_position_of_a_batch(blocks: Blocks | None) -> None:
    order = mixed([[500], [500]], 32, weights=[3, 1], blocks=blocks)
    second = np.stack([order.batch(step).cache for step in range(250)]).mean(axis=0)
    assert np.abs(second - 0.25).max() < 5 * math.sqrt(0.25 * 0.75 / 250)


def test_lanes_do_not_choose_caches_in_step() -> None:
    """Else a batch of 32 in 16 lanes would have 0, 16 or 32 samples of a cache."""
    order = mixed([[500], [500]], 32, weights=[1, 1], blocks=Blocks())
    counts = np.array([order.batch(step).cache.sum() for step in range(100)])
    assert counts.std() < 1.3 * math.sqrt(32 / 4)


def test_each_seed_mixes_in_its_own_way() -> None:
    def mix(counts: list[list[int]], seed: int) -> list[list[int]]:
        batches = [mixed(counts, 32, seed).batch(step) for step in range(16)]
        return [[batch.bucket, *batch.cache.tolist()] for batch in batches]

    for counts in ([[50], [50]], [[50, 50]]):
        assert len({str(mix(counts, seed)) for seed in range(4)}) == 4


def test_batches_are_of_one_bucket_and_buckets_come_by_their_samples() -> None:
    counts = [[512, 0, 64], [320, 128, 0]]
    order = mixed(counts, 16)
    per_bucket = np.array(counts).sum(axis=0)
    steps = int(per_bucket.sum()) // 16
    buckets = [order.batch(step).bucket for step in range(steps)]
    assert np.array_equal(np.bincount(buckets), per_bucket // 16)
    assert buckets[:RUN] != sorted(buckets[:RUN])
    for step in range(steps):
        batch = order.batch(step)
        for cache in (0, 1):
            assert (batch.sample[batch.cache == cache] < counts[cache][batch.bucket]).all()


@pytest.mark.parametrize("tail", ["wrap", "drop"])
def test_epochs_of_buckets_stay_in_step(tail: str) -> None:
    """At any step no bucket is more than one epoch, and what runs trade, ahead of another."""
    counts, batch_size = [6400, 640, 1300, 97], 32
    order = mixed([counts], batch_size, tail=tail)
    places = [stream.places for stream in order.streams[0] if stream]
    drawn = np.zeros(4)
    ahead = []
    for step in range(2 * sum(counts) // batch_size):
        drawn[order.batch(step).bucket] += batch_size
        ahead.append(np.ptp(drawn / places))
    # in batches: 4 of RUN / 4 = 16 in a run, and 2 for the splits, of 97 samples
    share = min(places) / sum(places)
    assert max(ahead) < (RUN * share + 2) * batch_size / min(places)
    assert max(ahead) < 1


def test_a_bucket_that_drops_its_tail_never_straddles_epochs() -> None:
    order = mixed([[100, 50, 33]], 16, tail="drop")
    for step in range(200):
        assert len(set(order.batch(step).epoch.tolist())) == 1


def test_streams_of_a_seed_are_unrelated() -> None:
    """The same number of samples, salted apart."""
    found = streams_of(mixed([[1000, 1000], [1000, 1000]], 40), 200)
    epochs = [samples[epochs == 0][:900] for samples, epochs in found.values()]
    for number, one in enumerate(epochs):
        assert all((one == other).sum() < 10 for other in epochs[:number])
