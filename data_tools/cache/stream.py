"""The samples of one cache (or of one bucket of it) as one endless stream, epoch after epoch.

Each epoch is a permutation of the samples to train on, drawn from (seed, salt, epoch). Global order permutes
samples; block order, for stores where a request is dear, permutes blocks of neighbours and shuffles windows
of them. Either way any place of the stream is computed at once, and nothing grows with the samples.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from data_tools.cache.permutation import Ids, below, keyed, permuted

Tail = Literal["wrap", "drop"]
"What becomes of an epoch's last samples that fill no batch: the next epoch joins them, or they are left out."


@dataclass(frozen=True)
class Blocks:
    """Block order: whole blocks of neighbouring samples are read, a window of blocks is shuffled."""

    samples: int = 32
    "Of a block."
    streams: int = 16
    "Canonical streams: each walks its own share of an epoch's blocks. Not fewer than there are ranks."
    window: int = 32
    "Blocks of a canonical stream that are shuffled together. As good as global: streams * window >= 256."

    def __post_init__(self) -> None:
        if min(self.samples, self.streams, self.window) < 1:
            raise ValueError(f"{self}: every number is at least 1")


@dataclass(frozen=True)
class Stream:
    """Endless epochs over some samples; each comes once an epoch, with `per_epoch` at most once."""

    num_samples: int
    held_out: Ids
    "Samples that are never drawn, ascending."
    seed: int
    salt: int = 0
    "Tells streams of the same seed apart: one for each cache and bucket."
    per_epoch: int | None = None
    "Samples of an epoch, others left out at random; None: all."
    blocks: Blocks | None = None
    "None: global order."

    def __post_init__(self) -> None:
        if self.num_drawn < 1:
            raise ValueError(f"{self.num_samples} samples, {len(self.held_out)} held out: none to draw")
        if not 1 <= self.places <= self.num_drawn:
            raise ValueError(f"{self.places} samples per epoch, {self.num_drawn} to draw from")

    @property
    def num_drawn(self) -> int:
        """Samples that can be drawn."""
        return self.num_samples - len(self.held_out)

    @property
    def places(self) -> int:
        """Places of an epoch."""
        return self.num_drawn if self.per_epoch is None else self.per_epoch

    def at(self, place: Ids) -> tuple[Ids, Ids]:
        """Samples at some places 0, 1, 2, … of the stream and the epoch each belongs to: (B,), (B,)."""
        epoch, place = np.divmod(place, self.places)
        if self.blocks is None:
            drawn = permuted(place, self.num_drawn, keyed(self.seed, "global", self.salt, epoch))
        else:
            dealt = self._dealt(self.blocks, epoch, place)
            drawn = self._in_blocks(self.blocks.samples, epoch, dealt)
        return drawn + np.searchsorted(self._held_out_before, drawn, side="right"), epoch

    @cached_property
    def _held_out_before(self) -> Ids:
        """How many samples that can be drawn stand before each held-out one."""
        before: Ids = self.held_out - np.arange(len(self.held_out))
        return before

    def _dealt(self, blocks: Blocks, epoch: Ids, place: Ids) -> Ids:
        """Which element of the epoch's sequence of blocks stands at each place.

        The sequence is cut into one run for each canonical stream, the runs take turns, and each run is
        shuffled window by window. First windows have half to one and a half times the size, another for
        each run, so that the runs do not all need new blocks at the same step; last ones likewise.
        """
        streams, window = min(blocks.streams, self.places), blocks.window * blocks.samples
        turn, stream = np.divmod(place, streams)
        even, more = divmod(self.places, streams)
        start, length = stream * even + np.minimum(stream, more), even + (stream < more)
        first = window // 2 + stream * window // streams
        last = np.maximum(0, (length - first + window // 2) // window)  # window of a run
        number = np.minimum(np.where(turn < first, 0, 1 + (turn - first) // window), last)
        begin = np.where(number == 0, 0, first + (number - 1) * window)
        end = np.where(number == last, length, first + number * window)
        key = keyed(self.seed, "window", self.salt, epoch, stream, number)
        shuffled: Ids = start + begin + permuted(turn - begin, end - begin, key)
        return shuffled

    def _in_blocks(self, size: int, epoch: Ids, element: Ids) -> Ids:
        """The epoch's sequence of blocks: which sample to draw (held-out ones not counted) each element is.

        A circle of the full blocks, permuted, and the short one, if any. The sequence begins at a random
        element of it, so that every sample is equally likely at every element.
        """
        full = self.num_drawn // size
        begin = below(self.num_drawn, keyed(self.seed, "begin", self.salt, epoch))
        slot, within = np.divmod((element + begin) % self.num_drawn, size)
        is_full = slot < full
        key = keyed(self.seed, "blocks", self.salt, epoch)
        block = np.where(is_full, permuted(slot * is_full, max(1, full), key), full)
        drawn: Ids = block * size + within
        return drawn


def make_stream(
    num_samples: int,
    held_out: Ids,
    batch_size: int,
    seed: int,
    *,
    salt: int = 0,
    tail: Tail = "wrap",
    blocks: Blocks | None = None,
) -> Stream:
    """The stream that drops or wraps an epoch's last samples that fill no batch of `batch_size`.

    Wrapped, every sample comes once an epoch and a batch may straddle two epochs. Dropped, no batch does,
    and each epoch leaves out fewer than `batch_size` samples, others each time.
    ValueError: no sample to draw, or with tail drop fewer than one batch.
    """
    drawn = num_samples - len(held_out)
    per_epoch = drawn // batch_size * batch_size if tail == "drop" else None
    if per_epoch == 0 and drawn > 0:
        raise ValueError(f"tail drop: {drawn} samples to draw are fewer than one batch of {batch_size}")
    return Stream(num_samples, held_out, seed, salt, per_epoch, blocks)
