"""Several streams in one: each item once, shares exact at every prefix, no pattern."""

import math
import re

import numpy as np
import pytest

from data_tools.cache.interleave import MAX_WEIGHT, RUN, interleave, mixture_shares

WEIGHTS = [
    [1, 1],
    [3, 1],
    [1, 0, 2],
    [7, 11, 13],
    [1, 1000],
    [MAX_WEIGHT - 1, 1],
    [1] * 9,
    [0, 5, 0, 4, 3, 2, 1, 0],
    [2**k for k in range(16)],
    [5],
    *(np.random.default_rng(number).integers(0, 1000, 2 + number).tolist() for number in range(12)),
]
LENGTH = 4096


def counts_of(stream: np.ndarray, num_streams: int) -> np.ndarray:
    """Items of each stream among the first x of the mix, x = 1, 2, …: (LENGTH, num_streams)."""
    return np.cumsum(stream[:, None] == np.arange(num_streams), axis=0)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_every_place_of_every_stream_comes_once(weights: list[int]) -> None:
    stream, place = interleave(weights, np.arange(LENGTH), 3)
    for number in range(len(weights)):
        places = place[stream == number]
        assert sorted(places) == list(range(len(places)))
        # in order, but within a run
        assert (np.diff(places) > -RUN).all()


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_shares_are_kept_at_every_prefix(weights: list[int]) -> None:
    depth = math.ceil(math.log2(sum(weight > 0 for weight in weights)))
    stream, _ = interleave(weights, np.arange(LENGTH), 1)
    exact = np.arange(1, LENGTH + 1)[:, None] * np.array(weights) / sum(weights)
    off = np.abs(counts_of(stream, len(weights)) - exact)
    assert off.max() <= RUN / 4 + depth
    assert off[RUN - 1 :: RUN].max() <= depth


@pytest.mark.parametrize("weights", [[3, MAX_WEIGHT - 3], [MAX_WEIGHT // 2 + 1, MAX_WEIGHT // 2 - 1], [1, 2]])
@pytest.mark.parametrize("start", [0, 2**31, 2**40 - LENGTH])
def test_far_items_are_exact(weights: list[int], start: int) -> None:
    """Against integers that cannot overflow."""
    stream, place = interleave(weights, np.arange(start, start + LENGTH), 9)
    first, stop = (x * weights[0] // sum(weights) for x in (start, start + LENGTH))
    assert sorted(place[stream == 0]) == list(range(first, stop))
    assert sorted(place[stream == 1]) == list(range(start - first, start + LENGTH - stop))


def test_weight_zero_is_never_drawn_and_one_stream_is_taken_as_it_is() -> None:
    index = np.arange(1000)
    stream, place = interleave([0, 4, 0], index, 7)
    assert (stream == 1).all()
    assert np.array_equal(place, index)
    assert set(interleave([1, 0, 1], index, 7)[0]) == {0, 2}


def test_there_is_no_pattern_and_each_key_has_its_own() -> None:
    index = np.arange(8192)
    mixes = [interleave([1, 1], index, key)[0] for key in range(3)]
    for mix in mixes:
        signs = 2 * mix - 1
        # from one run to another nothing is repeated: about 1 / sqrt(8192) = 0.011 by chance
        lags = [abs((signs[lag:] * signs[:-lag]).mean()) for lag in range(RUN, 6 * RUN)]
        assert max(lags) < 0.06
    assert 0.4 < (mixes[0] == mixes[1]).mean() < 0.6


def test_each_item_may_have_a_key_of_its_own() -> None:
    index, keys = np.arange(64), np.array([5, 6], dtype=np.uint64)
    stream, place = interleave([2, 3], np.tile(index, 2), np.repeat(keys, 64))
    for number, key in enumerate((5, 6)):
        alone = interleave([2, 3], index, key)
        assert np.array_equal(stream.reshape(2, 64)[number], alone[0])
        assert np.array_equal(place.reshape(2, 64)[number], alone[1])


@pytest.mark.parametrize("weights", [[], [0, 0], [2, -1], [MAX_WEIGHT, 1]])
def test_weights_that_cannot_be_mixed_are_refused(weights: list[int]) -> None:
    with pytest.raises(ValueError, match=re.escape(str(weights))):
        interleave(weights, np.arange(4), 0)


def test_without_weights_caches_count_by_their_samples() -> None:
    assert mixture_shares([None, None], [[10, 0], [3, 4]]) == ((10, 0), (3, 4))


def test_a_weight_is_a_share_of_the_draws_whatever_the_size() -> None:
    shares = mixture_shares([None, 0.3, 2], [[10**6, 10**6], [5, 0], [1, 3]])
    total = sum(map(sum, shares))
    assert total < MAX_WEIGHT
    found = np.array(shares) / total
    assert np.abs(found - np.array([[0.5, 0.5], [0.3, 0], [0.5, 1.5]]) / 3.3).max() < 1e-6
    assert shares[1][1] == 0


def test_more_samples_than_a_weight_can_count_are_scaled() -> None:
    shares = mixture_shares([None, None], [[3 * 10**9, 1], [10**9, 0]])
    assert sum(map(sum, shares)) < MAX_WEIGHT
    assert shares[0][0] / shares[1][0] == pytest.approx(3, rel=1e-6)
    assert shares[0][1] == 1
    assert shares[1][1] == 0


@pytest.mark.parametrize(
    ("weights", "counts", "said"),
    [
        ([None, 0.0], [[1], [1]], "cache 1: weight 0.0"),
        ([float("nan")], [[1]], "cache 0: weight nan"),
        ([float("inf")], [[1]], "cache 0: weight inf"),
        ([None, None], [[1, 2], [0, 0]], "cache 1: no sample"),
    ],
)
def test_shares_that_make_no_sense_are_refused(
    weights: list[float | None], counts: list[list[int]], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        mixture_shares(weights, counts)
