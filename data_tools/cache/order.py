"""Who reads what when: the order of samples as a pure function, with nothing to save and nothing to replay.

Samples form one endless stream, epoch after epoch; each epoch is a permutation of all samples drawn from
(seed, epoch). Global batch `step` is the next `batch_size` of the stream, so every sample comes exactly
once an epoch, a batch may straddle two epochs, and no tail is dropped. How many ranks share a global
batch does not matter: each takes its slice.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Order:
    num_samples: int
    batch_size: int
    "Samples in a global batch: over all ranks and accumulation rounds."
    seed: int

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Samples of global batch `step`, 0 … num_samples-1, and the epoch each belongs to: (B,), (B,)."""
        position = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)
        epoch, place = np.divmod(position, self.num_samples)
        samples = np.empty_like(position)
        for value in np.unique(epoch):
            chosen = epoch == value
            samples[chosen] = permutation(self.num_samples, self.seed, int(value))[place[chosen]]
        return samples, epoch

    def choice(
        self, samples: NDArray[np.int64], epoch: NDArray[np.int64], num_rows: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Which of its rows (captions, views) each sample shows in that epoch: uniform on 0 … num_rows-1."""
        with np.errstate(over="ignore"):
            state = _mix(np.full(samples.shape, self.seed, dtype=np.uint64))
            state = _mix(_mix(state ^ epoch.astype(np.uint64)) ^ samples.astype(np.uint64))
        uniform = (state >> np.uint64(11)) * 2.0**-53  # [0, 1)
        chosen: NDArray[np.int64] = (uniform * num_rows).astype(np.int64)
        return chosen


@lru_cache(maxsize=4)
def permutation(num_samples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of one epoch. (seed 1, epoch 0) and (seed 0, epoch 1) are unrelated."""
    generator = np.random.default_rng(np.random.SeedSequence([seed, epoch]))
    order: NDArray[np.int64] = generator.permutation(num_samples)
    return order


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function (Steele, Lea, Flood 2014) on uint64, wrapping."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = value ^ (value >> np.uint64(31))
    return mixed


def held_out(key_hash: NDArray[np.uint64], fraction: float) -> NDArray[np.bool_]:
    """True for the samples kept for validation: a rule on the key, so growing a cache moves none."""
    kept: NDArray[np.bool_] = key_hash < np.uint64(min(int(fraction * 2.0**64), 2**64 - 1))
    return kept
