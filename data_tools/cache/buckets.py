"""Which samples of a reader have which shape, for batches of one shape each.

How many samples of each shape a part has is in the generation; which ones they are is read from the part's
extent index when one of them is asked for. Memory: two bytes a sample of the parts touched.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data_tools.cache.generation import Generation
from data_tools.cache.reads import Ids

Shape = tuple[int, ...]
Counts = dict[Shape, int]
Shapes = Callable[[int], NDArray[np.int32]]
"Part → shape of the first row of each of its samples, (n, dimensions)."


def sample_counts(
    generation: Generation, parts: list[str], shapes: Shapes, incomplete: set[int]
) -> list[Counts]:
    """Samples of each shape in each of `parts`; those of which another column lacks samples are counted."""
    counts: list[Counts] = [{} for _ in parts]
    number = {name.encode(): place for place, name in enumerate(parts)}
    names = generation.part[generation.shape_part].tolist()
    for name, shape, count in zip(names, generation.shape.tolist(), generation.shape_samples.tolist()):
        if (part := number.get(name)) is not None and part not in incomplete:
            counts[part][tuple(shape)] = count
    for part in incomplete:
        found, how_many = np.unique(shapes(part), axis=0, return_counts=True)
        counts[part] = dict(zip(map(tuple, found.tolist()), how_many.tolist()))
    return counts


@dataclass
class Buckets:
    """A bucket's samples are numbered in the order of the reader's samples."""

    sample_starts: Ids
    "(parts + 1) the reader's number of each part's first sample."
    counts: list[Counts]
    "By part."
    part_shapes: Shapes
    shapes: list[Shape] = field(init=False)
    "Sorted."
    starts: Ids = field(init=False)
    "(K, parts + 1) the bucket's number of its first sample in each part; last: its samples."

    def __post_init__(self) -> None:
        self.shapes = sorted({shape for counts in self.counts for shape in counts})
        table = [[counts.get(shape, 0) for counts in self.counts] for shape in self.shapes]
        counted = np.array(table, dtype=np.int64).reshape(len(self.shapes), len(self.counts))
        self.starts = np.pad(np.cumsum(counted, axis=1), ((0, 0), (1, 0)))
        self._bucket_of: dict[int, NDArray[np.uint16]] = {}

    def samples(self, bucket: int, places: Ids) -> Ids:
        """The reader's samples at some places of a bucket: (B,)."""
        starts = self.starts[bucket]
        parts = np.searchsorted(starts, places, side="right") - 1
        samples = np.empty_like(places)
        for part in np.unique(parts).tolist():
            chosen = parts == part
            members = np.flatnonzero(self._buckets_in(part) == bucket)
            samples[chosen] = self.sample_starts[part] + members[places[chosen] - starts[part]]
        return samples

    def places(self, samples: Ids) -> tuple[Ids, Ids]:
        """The bucket of each of the reader's samples, and its place there: (B,), (B,)."""
        parts = np.searchsorted(self.sample_starts, samples, side="right") - 1
        bucket, place = np.empty_like(samples), np.empty_like(samples)
        for part in np.unique(parts).tolist():
            chosen = parts == part
            buckets, local = self._buckets_in(part), samples[chosen] - self.sample_starts[part]
            bucket[chosen] = buckets[local]
            before = np.cumsum(buckets[:, None] == np.arange(len(self.shapes)), axis=0)  # (n, K)
            place[chosen] = self.starts[bucket[chosen], part] + before[local, bucket[chosen]] - 1
        return bucket, place

    def _buckets_in(self, part: int) -> NDArray[np.uint16]:
        """The bucket of each sample of a part."""
        if part not in self._bucket_of:
            numbers = {shape: number for number, shape in enumerate(self.shapes)}
            found = [numbers[tuple(shape)] for shape in self.part_shapes(part).tolist()]
            self._bucket_of[part] = np.array(found, dtype=np.uint16)
        return self._bucket_of[part]
