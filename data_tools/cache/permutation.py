"""Chance without state: keys made of numbers and words, and permutations and uniform draws made of keys.

Nothing here keeps a generator or a table; any value of any draw is had at once, in any order.
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Words = NDArray[np.uint64]

ROUNDS = 16
"""Of the Feistel network. Four make a large one indistinguishable from random (Luby, Rackoff 1988); over
5 to 25 values, 200,000 permutations still show a bias at 10 and none at 16."""


def keyed(seed: int | Words, *words: int | str | Ids) -> Words:
    """One 64-bit key for each (seed, words…); arrays broadcast.

    Keys whose seeds or words differ anywhere are unrelated: (seed 1, epoch 0) and (seed 0, epoch 1) are.
    """
    key = _mix(_word(seed))
    for word in words:
        key = _mix(key ^ _word(word))
    return key


def below(bound: int | Ids, key: Words) -> Ids:
    """A uniform draw from 0 … bound-1 for each key, bound < 2**40."""
    drawn: Ids = ((key >> np.uint64(11)) * 2.0**-53 * bound).astype(np.int64)
    return drawn


def permuted(place: Ids, size: int | Ids, key: Words) -> Ids:
    """A permutation of 0 … size-1 for each key, at `place` < size: (B,). Needs no memory for it.

    A Feistel network on pairs (left < a, right < b) with a = ceil(sqrt(size)), b = ceil(size / a); the few
    values from `size` on walk on along their cycle until they fall inside (Black, Rogaway 2002).
    """
    bound = np.broadcast_to(np.asarray(size, dtype=np.uint64), place.shape)
    key = np.broadcast_to(key, place.shape)
    value = _feistel(place.astype(np.uint64), bound, key)
    while len(outside := np.flatnonzero(value >= bound)):
        value[outside] = _feistel(value[outside], bound[outside], key[outside])
    return value.astype(np.int64)


def _feistel(value: Words, size: Words, key: Words) -> Words:
    """One pass: a permutation of 0 … a*b-1. What is added has 63 bits, so that no sum wraps."""
    a = np.ceil(np.sqrt(size)).astype(np.uint64)
    b = (size + a - np.uint64(1)) // a
    right, left = np.divmod(value, a)
    for number in range(0, ROUNDS, 2):
        left = (left + (_mix(key + np.uint64(number) ^ _mix(right)) >> np.uint64(1))) % a
        right = (right + (_mix(key + np.uint64(number + 1) ^ _mix(left)) >> np.uint64(1))) % b
    return right * a + left


def _word(value: int | str | Ids | Words) -> Words:
    if isinstance(value, str):
        value = int.from_bytes(hashlib.blake2b(value.encode(), digest_size=8).digest(), "little")
    if isinstance(value, int):
        value %= 2**64
    return np.atleast_1d(value).astype(np.uint64)


def _mix(value: Words) -> Words:
    """SplitMix64's output function (Steele, Lea, Flood 2014) on uint64 arrays, wrapping."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = value ^ (value >> np.uint64(31))
    return mixed
