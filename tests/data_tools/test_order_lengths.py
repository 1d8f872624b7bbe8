"""Batches of like length: less padding, and nobody is seen more, less or earlier for their length."""

from itertools import pairwise

import numpy as np
import pytest

from data_tools.cache.order import Drawn, Order
from data_tools.cache.stream import Blocks, Stream, make_stream
from tests.data_tools.orders import NONE, grouped, lengths_of, mixed, together


def lengths(batch: Drawn) -> np.ndarray:
    return lengths_of(batch.cache, batch.sample, batch.epoch)


def padded(order: Order, steps: int) -> float:
    """Rows of a padded batch for each row with a token."""
    batches = [lengths(order.batch(step)) for step in range(steps)]
    return float(sum(len(batch) * batch.max() for batch in batches) / sum(batch.sum() for batch in batches))


def test_padding_falls() -> None:
    alone, windows = padded(grouped(10_000, 32, 1), 96), padded(grouped(10_000, 32, 32), 96)
    assert alone > 1.7
    assert windows < 1.1


@pytest.mark.parametrize("group", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("samples", [500, 203, 16, 5])
def test_an_epochs_batches_have_the_samples_they_had(samples: int, group: int) -> None:
    """Those that lie in it as a whole, together; the batches between two epochs, each by itself."""
    order, plain = grouped(samples, 8, group), grouped(samples, 8, 1)
    for epoch in range(3):
        first, end = -(-epoch * samples // 8), (epoch + 1) * samples // 8
        between = end + ((epoch + 1) * samples % 8 > 0)
        for steps in (range(first, end), range(end, between)):
            found, wanted = ([each.batch(step) for step in steps] for each in (order, plain))
            keys = [
                sorted(
                    (e, s) for drawn in batches for e, s in zip(drawn.epoch.tolist(), drawn.sample.tolist())
                )
                for batches in (found, wanted)
            ]
            assert keys[0] == keys[1]


@pytest.mark.parametrize("group", [2, 32])
def test_a_run_of_whole_epochs_shows_every_sample_as_often(group: int) -> None:
    stream = make_stream(1000, NONE, 16, 0, tail="drop")
    order = Order(((stream,),), ((1,),), 16, 0, group, lengths_of)
    for epoch in range(3):
        drawn = together([order.batch(step) for step in range(epoch * 62, (epoch + 1) * 62)])
        assert set(drawn.epoch.tolist()) == {epoch}
        assert len(set(drawn.sample.tolist())) == 62 * 16


def test_batches_of_a_window_are_cut_by_length_and_come_in_any_order() -> None:
    order = grouped(10_000, 16, 8)
    firsts = []
    for window in range(40):
        batches = [lengths(order.batch(window * 8 + number)) for number in range(8)]
        by_length = sorted(range(8), key=lambda number: batches[number].mean())
        for shorter, longer in pairwise(by_length):
            assert batches[shorter].max() <= batches[longer].min()
        firsts.append(by_length[0])
    assert len(set(firsts)) == 8


def test_every_sample_comes_once_an_epoch() -> None:
    order = grouped(203, 16, 5)
    drawn = together([order.batch(step) for step in range(80)])
    for epoch in range(4):
        assert sorted(drawn.sample[drawn.epoch == epoch]) == list(range(203))


def test_the_first_step_is_no_shorter_than_others() -> None:
    """Mean over seeds within five standard errors of the mean over samples; the window's spread is large."""
    population = lengths_of(np.zeros(2000, int), np.arange(2000), np.zeros(2000, int))
    means = np.array([lengths(grouped(2000, 16, 8, seed).batch(0)).mean() for seed in range(400)])
    assert means.std() > 15
    assert abs(means.mean() - population.mean()) < 5 * means.std() / np.sqrt(400)


def test_every_position_of_a_batch_has_any_length() -> None:
    """Otherwise the first rank had the shortest captions of each step."""
    order = grouped(2000, 8, 4)
    batches = np.stack([lengths(order.batch(step)) for step in range(400)])
    rank = np.argsort(np.argsort(batches, axis=1), axis=1)
    assert np.abs(rank.mean(axis=0) - 3.5).max() < 5 * np.sqrt(63 / 12 / 400)


def test_captions_of_a_later_epoch_have_their_own_lengths() -> None:
    """`lengths` is asked with the epoch that is shown."""
    asked = []

    def record(cache: np.ndarray, sample: np.ndarray, epoch: np.ndarray) -> np.ndarray:
        asked.append((cache.copy(), sample.copy(), epoch.copy()))
        return lengths_of(cache, sample, epoch)

    order = Order(((Stream(40, NONE, 0),), (Stream(10, NONE, 0, 1),)), ((4,), (1,)), 10, 0, 5, record)
    batches = together([order.batch(step) for step in range(15)])
    assert len(asked) == 3  # once a window
    assert {int(epoch.max()) for _, _, epoch in asked} >= {1, 2}
    seen = [np.concatenate(column) for column in zip(*asked)]
    wanted = [batches.cache, batches.sample, batches.epoch]
    assert sorted(zip(*map(np.ndarray.tolist, seen))) == sorted(zip(*map(np.ndarray.tolist, wanted)))


def test_windows_of_samples_are_not_kept() -> None:
    order = grouped(5000, 8, 4)
    for step in range(400):
        order.batch(step)
    assert len(order._windows) <= 2


def test_block_order_and_mixtures_are_grouped_too() -> None:
    plain = mixed([[3000], [1000]], 32, blocks=Blocks())
    order = Order(plain.streams, plain.shares, 32, 0, 16, lengths_of)
    assert padded(order, 64) < 1.15 < 1.7 < padded(plain, 64)
    found, wanted = (together([each.batch(step) for step in range(32)]) for each in (order, plain))
    keys = [sorted(zip(drawn.cache, drawn.sample, drawn.epoch)) for drawn in (found, wanted)]
    assert keys[0] == keys[1]


def test_equal_lengths_stay_in_the_order_they_were_drawn_in() -> None:
    stream = Stream(5000, NONE, 0)
    order = Order(((stream,),), ((1,),), 32, 0, 8, lambda cache, sample, epoch: sample % 3)
    drawn = together([grouped(5000, 32, 1).batch(step) for step in range(8)]).sample.tolist()
    by_length = sorted(drawn, key=lambda sample: sample % 3)
    wanted = {frozenset(by_length[start : start + 32]) for start in range(0, 256, 32)}
    assert {frozenset(order.batch(step).sample.tolist()) for step in range(8)} == wanted
