"""Which rows of each column make a batch: the order of samples, applied to what a reader holds.

Without weights all caches are one stream, and each sample comes once an epoch. With weights each cache is a
stream of its own. A column with buckets cuts each stream into one a bucket, and every batch is of one bucket.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from data_tools.cache.interleave import mixture_shares
from data_tools.cache.mixture import Mixture, Reader
from data_tools.cache.order import Drawn, Order, choice
from data_tools.cache.reads import Ids
from data_tools.cache.stream import Blocks, Stream, Tail, make_stream
from data_tools.errors import UserError

CAPTIONS = "text"
"The column whose rows are captions; those of all others are views."


@dataclass(frozen=True)
class Ordering:
    """How samples follow each other."""

    kind: Literal["global", "block"] = "global"
    tail: Tail = "wrap"
    group: int = 1
    "Global batches whose samples are sorted by the length of their caption, not more than an epoch; 1: none."


class Sampling:
    """The samples of each batch, and their rows. Raises `UserError` where there is nothing to draw.

    `held_out` are the samples that are never drawn, in any order.
    """

    def __init__(self, reader: Reader, held_out: Ids, batch_size: int, seed: int, ordering: Ordering) -> None:
        self.reader, self.seed = reader, seed
        weights: list[float] | list[None] = [None]
        self._members: list[Reader] = [reader]
        self._starts = [0]
        if isinstance(reader, Mixture) and reader.weights:
            weights, self._members = reader.weights, list(reader.readers)
            self._starts = reader.starts[:-1].tolist()
        self._bucketed = next((name for name in reader.columns if reader.buckets(name)), None)
        self._shapes: list[tuple[int, ...]] = [()]
        if self._bucketed:
            self._shapes = reader.buckets(self._bucketed)
        if ordering.tail == "drop" and len(self._members) > 1:
            raise UserError(
                "--tail: drop with weighted caches, whose epochs end at different times; wanted wrap"
            )
        streams = tuple(
            tuple(self._streams(number, held_out, batch_size, ordering))
            for number in range(len(self._members))
        )
        places = [[stream.places if stream else 0 for stream in row] for row in streams]
        self.samples_per_epoch = sum(map(sum, places))
        shares = mixture_shares(weights, places)
        group = max(1, min(ordering.group, self.samples_per_epoch // batch_size))
        lengths = self._lengths if group > 1 else None
        self.order = Order(streams, shares, batch_size, seed, group, lengths)

    def rows(self, step: int, positions: range) -> dict[str, Ids]:
        """The rows of each column at some positions of global batch `step`: (B,) each."""
        drawn = self.order.share(step, positions)
        samples = self.samples(drawn)
        return {column: self.shown(column, samples, drawn.epoch) for column in self.reader.columns}

    def keys(self, step: int, positions: range) -> list[str]:
        """The keys of the samples at some positions of global batch `step`."""
        return self.reader.keys(self.samples(self.order.share(step, positions)))

    def samples(self, drawn: Drawn) -> Ids:
        """The reader's numbers of drawn samples: (B,)."""
        samples = np.empty_like(drawn.sample)
        for number in np.unique(drawn.cache).tolist():
            chosen, member = drawn.cache == number, self._members[number]
            local = drawn.sample[chosen]
            if self._bucketed:
                own = member.buckets(self._bucketed).index(self._shapes[drawn.bucket])
                local = member.in_bucket(self._bucketed, own, local)
            samples[chosen] = self._starts[number] + local
        return samples

    def shown(self, column: str, samples: Ids, epoch: Ids) -> Ids:
        """The row of each sample, one of its captions or views, that is shown in an epoch: (B,)."""
        first, count = self.reader.rows(column, samples)
        what = "captions" if column == CAPTIONS else "views"
        return first + choice(self.seed, samples, epoch, count, what=what)

    def _lengths(self, cache: Ids, sample: Ids, epoch: Ids) -> Ids:
        samples = self.samples(Drawn(cache, 0, sample, epoch))
        return self.reader.lengths(CAPTIONS, self.shown(CAPTIONS, samples, epoch))

    def _streams(
        self, number: int, held_out: Ids, batch_size: int, ordering: Ordering
    ) -> list[Stream | None]:
        """One cache's stream of each bucket."""
        member = self._members[number]
        local = held_out - self._starts[number]
        local = local[(local >= 0) & (local < member.num_samples)]
        counts, bucket, place = np.array([member.num_samples]), np.zeros_like(local), local
        if self._bucketed:
            counts = np.zeros(len(self._shapes), dtype=np.int64)
            ours = [self._shapes.index(shape) for shape in member.buckets(self._bucketed)]
            counts[ours] = member.bucket_counts(self._bucketed)
            own, place = member.bucket_of(self._bucketed, local)
            bucket = np.array(ours, dtype=np.int64)[own]
        streams: list[Stream | None] = []
        for which, count in enumerate(counts.tolist()):
            held = np.sort(place[bucket == which])
            if count == len(held):
                streams.append(None)
                continue
            salt = number * len(counts) + which
            blocks = Blocks() if ordering.kind == "block" else None
            if ordering.tail == "drop" and count - len(held) < batch_size:
                where = f" of shape {self._shapes[which]}" if self._bucketed else ""
                raise UserError(
                    f"--tail: drop, but {member.url} has {count - len(held)} samples{where} to train on, "
                    f"fewer than a batch of {batch_size}; use wrap or smaller batches"
                )
            streams.append(
                make_stream(count, held, batch_size, self.seed, salt=salt, tail=ordering.tail, blocks=blocks)
            )
        if not any(streams):
            raise UserError(f"--cache: {member.url}: no sample to train on ({len(local)} held out)")
        return streams
