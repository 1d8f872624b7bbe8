"""Who reads what when: the order of samples as a pure function, with nothing to save and nothing to replay.

A batch is the next `batch_size` samples of one bucket, out of the caches in their shares, each cache's
samples in the order of its stream (see `stream.py`). Which bucket, which cache and which sample follow from
(streams, shares, seed, step, batch size) alone. How many ranks share a global batch does not matter: each
takes its slice. Nothing here grows with the number of samples.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import gcd

import numpy as np

from data_tools.cache.interleave import check_weights, interleave
from data_tools.cache.permutation import Ids, below, keyed, permuted
from data_tools.cache.stream import Stream

WINDOWS_KEPT = 2
"Of sorted samples: the one at hand and, for a thread that reads ahead, the next."


@dataclass(frozen=True)
class Drawn:
    """Samples of one batch, or of a rank's share of it."""

    cache: Ids
    "(B,)"
    bucket: int
    sample: Ids
    "(B,): number within the cache's bucket, what `Stream.at` gave."
    epoch: Ids
    "(B,): of that stream."


@dataclass(frozen=True)
class Order:
    streams: tuple[tuple[Stream | None, ...], ...]
    "[cache][bucket]; None: that cache has no sample of the bucket."
    shares: tuple[tuple[int, ...], ...]
    "[cache][bucket]: how many of the drawn samples come from each stream, relatively; see `mixture_shares`."
    batch_size: int
    "Samples in a global batch: over all ranks and accumulation rounds."
    seed: int
    group: int = 1
    """At most so many batches make a window, whose samples are sorted by length and cut into batches of like
    length; 1: none. A window lies within an epoch (of one cache; those of weighted caches end at different
    times), so each sample still comes once in it, and each batch of a window is as likely to be the short
    one. With block order, the ranks then share their blocks."""
    lengths: Callable[[Ids, Ids, Ids], Ids] | None = None
    "(cache (B,), sample (B,), epoch (B,)) → length (B,); with group > 1."
    _windows: dict[int, Drawn] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if min(self.batch_size, self.group) < 1:
            raise ValueError(f"batch size {self.batch_size}, group {self.group}: both are at least 1")
        given = [[stream is not None for stream in row] for row in self.streams]
        if [len(row) for row in given] != [len(row) for row in self.shares] or len(set(map(len, given))) != 1:
            raise ValueError("streams and shares: not one for each cache and bucket")
        if any(share and not there for row in zip(self.shares, given) for share, there in zip(*row)):
            raise ValueError("shares: more than 0 where there is no stream")
        check_weights([sum(row) for row in self.shares])
        if self.group > 1 and (self.lengths is None or len(given[0]) > 1):
            raise ValueError(f"group {self.group}: needs lengths, and one bucket; found {len(given[0])}")

    @classmethod
    def plain(cls, num_samples: int, held_out: Ids, batch_size: int, seed: int) -> "Order":
        """Global order over the samples of one cache without buckets; `held_out`, ascending, never drawn."""
        return cls(((Stream(num_samples, held_out, seed),),), ((1,),), batch_size, seed)

    def batch(self, step: int) -> Drawn:
        """All samples of global batch `step`."""
        return self.share(step, range(self.batch_size))

    def share(self, step: int, positions: range) -> Drawn:
        """The samples at some positions of global batch `step`; without grouping no others are made."""
        position = np.arange(positions.start, positions.stop, positions.step, dtype=np.int64)
        per_bucket = [sum(column) for column in zip(*self.shares)]
        bucket, number = interleave(per_bucket, np.array([step]), keyed(self.seed, "buckets"))
        window = self._window(step)
        if len(window) == 1:
            return self._drawn(int(bucket[0]), np.repeat(number, len(position)), position)
        key = keyed(self.seed, "batches", window.start)
        sorted_at = permuted(np.array([step - window.start]), len(window), key)[0]
        shuffled = permuted(position, self.batch_size, keyed(self.seed, "positions", step))
        return _taken(self._sorted(window), sorted_at * self.batch_size + shuffled)

    def _window(self, step: int) -> range:
        """The batches whose samples are sorted together with those of batch `step`.

        A batch that straddles two epochs is a window of its own.
        """
        if self.group == 1 or len(self.streams) > 1:
            start = step // self.group * self.group
            return range(start, start + self.group)
        (stream,) = self.streams[0]
        assert stream is not None
        epoch = step * self.batch_size // stream.places
        first = -(-epoch * stream.places // self.batch_size)  # batch that lies in the epoch as a whole
        end = (epoch + 1) * stream.places // self.batch_size
        if not first <= step < end:
            return range(step, step + 1)
        start = first + (step - first) // self.group * self.group
        return range(start, min(start + self.group, end))

    def _drawn(self, bucket: int, number: Ids, position: Ids) -> Drawn:
        """The samples at some positions (B,) of some of a bucket's batches, its number-th ones (B,).

        In block order a batch is as many runs of positions, its lanes, as all canonical streams have shares
        of it: lane i takes every num_lanes-th place of each stream from the i-th on, so that a rank, whose
        positions are neighbours, reads the blocks of its own canonical streams only.
        """
        num_lanes = self._num_lanes()
        of_lane = self.batch_size // num_lanes
        lane, turn = np.divmod(position, of_lane)
        weights = [row[bucket] for row in self.shares]
        key = keyed(self.seed, "caches", bucket, lane)
        cache, place = interleave(weights, number * of_lane + turn, key)
        place = place * num_lanes + lane
        sample, epoch = np.empty_like(place), np.empty_like(place)
        for which in np.unique(cache):
            stream, chosen = self.streams[which][bucket], cache == which
            assert stream is not None  # its share is not 0
            sample[chosen], epoch[chosen] = stream.at(place[chosen])
        return Drawn(cache, bucket, sample, epoch)

    def _num_lanes(self) -> int:
        """The largest number that divides the batch and every stream's canonical streams; 1: global order."""
        blocks = [stream.blocks for row in self.streams for stream in row if stream and stream.blocks]
        return gcd(self.batch_size, *(block.streams for block in blocks)) if blocks else 1

    def _sorted(self, window: range) -> Drawn:
        """All samples of a window of batches, by length; equal lengths stay as they were drawn."""
        found = self._windows.get(window.start)  # another thread may work on it, too: it finds the same
        if found is None:
            assert self.lengths is not None
            item = np.arange(len(window) * self.batch_size, dtype=np.int64)
            number, position = np.divmod(item, self.batch_size)
            drawn = self._drawn(0, window.start + number, position)
            lengths = self.lengths(drawn.cache, drawn.sample, drawn.epoch)
            found = self._windows[window.start] = _taken(drawn, np.argsort(lengths, kind="stable"))
            for old in list(self._windows)[:-WINDOWS_KEPT]:
                self._windows.pop(old, None)
        return found


def choice(seed: int, samples: Ids, epoch: Ids, num_rows: Ids, *, what: str) -> Ids:
    """Which of its rows each sample shows in that epoch: (B,), uniform on 0 … num_rows-1.

    `what` is what the rows are, "captions" or "views": each is drawn on its own, and all columns that have
    views show the same one.
    """
    return below(num_rows, keyed(seed, "choice", what, epoch, samples))


def _taken(drawn: Drawn, index: Ids) -> Drawn:
    return Drawn(drawn.cache[index], drawn.bucket, drawn.sample[index], drawn.epoch[index])
