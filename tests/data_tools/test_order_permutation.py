"""Permutations and draws out of keys: complete, uniform, unrelated."""

import math
from itertools import permutations

import numpy as np
import pytest

from data_tools.cache.permutation import below, keyed, permuted

SIZES = [1, 2, 3, 4, 5, 7, 16, 17, 64, 65, 1000, 4095, 4097]


@pytest.mark.parametrize("size", SIZES)
def test_permuted_is_a_permutation(size: int) -> None:
    for epoch in range(5):
        assert sorted(permuted(np.arange(size), size, keyed(0, epoch))) == list(range(size))


def test_each_place_may_have_its_own_size_and_key() -> None:
    place = np.concatenate([np.arange(size) for size in SIZES])
    size = np.repeat(SIZES, SIZES)
    together = permuted(place, size, keyed(7, size))
    alone = [permuted(np.arange(size), size, keyed(7, size)) for size in SIZES]
    assert np.array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("size", [2**31 + 11, 2**40 - 1])
def test_large_permutations_stay_inside_and_do_not_meet(size: int) -> None:
    place = np.concatenate([np.arange(5000), np.arange(size - 5000, size)])
    found = permuted(place, size, keyed(1))
    assert found.min() >= 0
    assert found.max() < size
    assert len(np.unique(found)) == len(place)
    assert abs(found.mean() / size - 0.5) < 5 / math.sqrt(12 * len(place))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_every_small_permutation_is_equally_likely(size: int) -> None:
    """Chi-square over 12,000 keys: within five standard deviations of its mean."""
    keys = keyed(2, np.repeat(np.arange(12_000), size))
    found = permuted(np.tile(np.arange(size), 12_000), size, keys).reshape(-1, size)
    names, counts = np.unique(found, axis=0, return_counts=True)
    assert len(names) == len(list(permutations(range(size)))) == math.factorial(size)
    expected = 12_000 / len(names)
    chi_square, freedom = ((counts - expected) ** 2 / expected).sum(), len(names) - 1
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [16, 100, 1003])
def test_neighbours_go_anywhere(size: int) -> None:
    """The distance of what two neighbouring places get, around the circle: each equally likely."""
    place, epochs = 7, 20_000
    keys = keyed(3, np.arange(epochs))
    one, other = (permuted(np.full(epochs, place + step), size, keys) for step in (0, 1))
    counts = np.bincount((other - one) % size, minlength=size)[1:]
    expected = epochs / (size - 1)
    chi_square, freedom = ((counts - expected) ** 2 / expected).sum(), size - 2
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


def test_keys_tell_words_places_and_seeds_apart() -> None:
    keys = [
        int(keyed(seed, *words)[0])
        for seed in (0, 1, 2, -1, 2**63)
        for words in ((), (0,), (1,), (0, 0), (0, 1), (1, 0), ("a",), ("b",), ("a", 1), (seed,))
    ]
    repeated = sum(seed in (0, 1) for seed in (0, 1, 2, -1, 2**63))  # (seed,) is (0,) or (1,)
    assert len(set(keys)) == len(keys) - repeated
    assert np.array_equal(keyed(5, "a", np.arange(3))[1:2], keyed(5, "a", 1))


def test_draws_below_a_bound_are_uniform_and_stay_below_it() -> None:
    keys = keyed(4, np.arange(70_000))
    counts = np.bincount(below(7, keys), minlength=7)
    assert len(counts) == 7
    assert np.abs(counts - 10_000).max() < 5 * math.sqrt(10_000)
    top = np.full(1, 2**64 - 1, dtype=np.uint64)
    assert below(2**40 - 1, top).tolist() == [2**40 - 2]
