"""Who reads what when: the order of samples as a pure function, with nothing to save and nothing to replay.

Samples form one endless stream, epoch after epoch; each epoch is a permutation of the samples to train on,
drawn from (seed, epoch). Global batch `step` is the next `batch_size` of the stream, so every sample comes
exactly once an epoch, a batch may straddle two epochs, and no tail is dropped. How many ranks share a
global batch does not matter: each takes its slice. Nothing here grows with the number of samples.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Words = NDArray[np.uint64]

ROUNDS = 6
"Of the Feistel network; four make it indistinguishable from random (Luby, Rackoff 1988)."


@dataclass(frozen=True)
class Order:
    num_samples: int
    "In the cache."
    held_out: Ids
    "Samples that are never drawn, ascending."
    batch_size: int
    "Samples in a global batch: over all ranks and accumulation rounds."
    seed: int

    def __post_init__(self) -> None:
        if self.num_drawn < 1:
            raise ValueError(f"{self.num_samples} samples, {len(self.held_out)} held out: none to draw")

    @property
    def num_drawn(self) -> int:
        """Samples of one epoch."""
        return self.num_samples - len(self.held_out)

    def batch(self, step: int) -> tuple[Ids, Ids]:
        """Samples of global batch `step` and the epoch each belongs to: (B,), (B,)."""
        return self.share(step, range(self.batch_size))

    def share(self, step: int, positions: range) -> tuple[Ids, Ids]:
        """The samples at some positions of global batch `step`, and their epochs; no others are made."""
        position = np.arange(positions.start, positions.stop, dtype=np.int64) + step * self.batch_size
        epoch, place = np.divmod(position, self.num_drawn)
        drawn = permuted(place, self.num_drawn, _key(self.seed, epoch))
        # how many held-out samples stand before the i-th of the others: those with at most i others before
        before = self.held_out - np.arange(len(self.held_out))
        return drawn + np.searchsorted(before, drawn, side="right"), epoch

    def choice(self, samples: Ids, epoch: Ids, num_rows: Ids) -> Ids:
        """Which of its rows (captions, views) each sample shows in that epoch: uniform on 0 … num_rows-1."""
        state = _mix(_key(self.seed, epoch) ^ _mix(samples.astype(np.uint64)))
        uniform = (state >> np.uint64(11)) * 2.0**-53  # [0, 1)
        chosen: Ids = (uniform * num_rows).astype(np.int64)
        return chosen


def permuted(place: Ids, size: int, key: Words) -> Ids:
    """A permutation of 0 … size-1 for each key, at `place`: (B,). Needs no memory for it.

    A Feistel network on the next even number of bits; what falls outside walks on along its cycle until it
    falls inside (Black, Rogaway 2002), less than four times on average.
    """
    half = np.uint64(max(1, (max(1, size - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    value = place.astype(np.uint64)
    outside = np.ones(len(value), dtype=bool)
    while outside.any():
        left, right, keys = value[outside] >> half, value[outside] & mask, key[outside]
        for number in range(ROUNDS):
            left, right = right, left ^ (_mix(keys + np.uint64(number) ^ _mix(right)) & mask)
        value[outside] = left << half | right
        outside = value >= np.uint64(size)
    return value.astype(np.int64)


def _key(seed: int, epoch: Ids) -> Words:
    """One word for (seed, epoch); (seed 1, epoch 0) and (seed 0, epoch 1) are unrelated."""
    return _mix(_mix(np.full(epoch.shape, seed, dtype=np.uint64)) ^ epoch.astype(np.uint64))


def _mix(value: Words) -> Words:
    """SplitMix64's output function (Steele, Lea, Flood 2014) on uint64, wrapping."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Words = value ^ (value >> np.uint64(31))
    return mixed
