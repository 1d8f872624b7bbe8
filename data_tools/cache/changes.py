"""What is different between a plan and the source as it is now: pure functions, one sample or part at a time.

A sample is known by its key. What the encoders see of it are two inputs: the picture, known by the hash of
its file, and the captions. Either may have changed alone, and then only its columns are encoded again. Where
a sample lies, and when its file was touched, are no part of it (`data_tools.cache.touched` keeps them).
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_tools.cache.manifest import Part
from data_tools.sources import Sample

NEW, REMOVED, KEPT = "new", "removed", "kept"
PICTURE, CAPTIONS, BOTH = "picture", "captions", "picture and captions"
"What has changed of a sample."
RETRIED = "retried"
"Nothing has changed, but a column that had rejected the sample tries it again."
LOST = (REMOVED, PICTURE, BOTH)
"The picture of a sample is no longer in the source."
FRESH = (NEW, PICTURE, CAPTIONS, BOTH, RETRIED)
"Samples that the next plan adds."
EXAMPLES = 3
"Keys that are shown of each kind."
UNSEEN, SAME, REPLACED, RETIRED = range(4)
"Mark of a planned sample: not (yet) listed, listed as it was, listed otherwise, retired by an earlier plan."


class Seen(NamedTuple):
    """How and where a source lists the picture of a sample: no part of what the sample is."""

    num_bytes: int
    mtime_ns: int
    place: str
    source: int

    @classmethod
    def of(cls, sample: Sample) -> "Seen":
        return cls(sample.num_bytes, sample.mtime_ns, sample.place, sample.source)


@dataclass(frozen=True)
class Known:
    """What a plan remembers of a sample, short."""

    part: int
    "Number in the plan's list of parts."
    position: int
    "In the part's sample table."
    seen: Seen
    "When it was last compared."
    has_moved: bool
    "It was elsewhere then than its table says."
    picture: str
    captions: str

    @classmethod
    def of(cls, part: int, position: int, sample: Sample, touched: Seen | None = None) -> "Known":
        """`touched`: how it was seen last, where that is not as its table says."""
        planned = Seen.of(sample)
        seen = touched or planned
        has_moved = (seen.place, seen.source) != (planned.place, planned.source)
        return cls(part, position, seen, has_moved, picture_of(sample), captions_of(sample))

    def dump(self) -> str:
        return json.dumps([*vars(self).values()])

    @classmethod
    def load(cls, text: str) -> "Known":
        part, position, seen, *rest = json.loads(text)
        return cls(part, position, Seen(*seen), *rest)


@dataclass
class Changes:
    """How many samples have changed in which way, and a few of their keys."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, key: str) -> None:
        self.counts[kind] += 1
        if len(keys := self.examples.setdefault(kind, [])) < EXAMPLES:
            keys.append(key)

    def retry(self, key: str, columns: Iterable[str]) -> None:
        """A sample that is as it was, and that some columns try again."""
        for kind in (RETRIED, *map(_retried, columns)):
            self.add(kind, key)

    def __bool__(self) -> bool:
        return any(count for kind, count in self.counts.items() if kind != KEPT)

    def of_column(self, column: str) -> dict[str, tuple[int, list[str]]]:
        """kept, new, changed and removed as one column sees it: number of samples and a few keys.

        Those that it tries again count as changed.
        """
        one, other = (CAPTIONS, PICTURE) if column == "text" else (PICTURE, CAPTIONS)
        again = _retried(column)
        kinds = {
            KEPT: (KEPT, other, RETRIED),
            NEW: (NEW,),
            "changed": (one, BOTH, again),
            REMOVED: (REMOVED,),
        }
        return {
            word: (
                sum(self.counts[kind] for kind in some) - self.counts[again] * (word == KEPT),
                [key for kind in some for key in self.examples.get(kind, [])][:EXAMPLES],
            )
            for word, some in kinds.items()
        }

    def lost(self) -> int:
        """Samples whose picture is no longer in the source."""
        return sum(self.counts[kind] for kind in LOST)

    def __str__(self) -> str:
        changed = sum(self.counts[kind] for kind in (PICTURE, CAPTIONS, BOTH))
        kept, new, removed, again = (self.counts[kind] for kind in (KEPT, NEW, REMOVED, RETRIED))
        line = f"{kept} kept, {new} new, {changed} changed, {removed} removed"
        return f"{line}, {again} tried again" if again else line


def _retried(column: str) -> str:
    """The kind of samples that one column tries again."""
    return f"{RETRIED}: {column}"


def picture_of(sample: Sample) -> str:
    """The picture as content: its hash, or why there is none; empty if it could not be read."""
    return f"!{sample.problem}" if sample.problem else sample.xxh3_128


def captions_of(sample: Sample) -> str:
    """The captions as content: a hash of them, or of why there are none."""
    text = json.dumps([sample.captions, sample.caption_problem])
    return xxhash.xxh3_128_hexdigest(text.encode())


def wants_hash(known: Known | None, listed: Sample, *, rehash: bool = False) -> bool:
    """True if only reading the file can tell whether a listed sample has the picture that is known.

    So it is where size, time of change or place differ, where the source knows no time of change, or where it
    could not be read before.
    """
    if known is None or listed.problem or listed.unlisted:
        return False
    return rehash or not _as_before(known, listed) or not _has_hash(known) or known.seen.place != listed.place


def settled(known: Known, listed: Sample, *, was_read: bool) -> Sample:
    """A listed sample as it is to be compared; `was_read`: it has its file's hash, if that could be read.

    A picture that cannot be looked at now, or that looks as before but cannot be read, has not changed: it
    stays what is known of it, and `unlisted` is set.
    """
    if listed.problem:
        return listed
    if not was_read and not listed.unlisted:
        return replace(listed, xxh3_128=known.picture)
    lost = listed.unlisted or (_as_listed(known, listed) and not listed.xxh3_128)
    if not lost or not _has_hash(known):  # what was never read has nothing to stay
        return listed
    unlisted = listed.unlisted or listed.place
    return replace(listed, **known.seen._asdict(), xxh3_128=known.picture, unlisted=unlisted)


def _as_before(known: Known, listed: Sample) -> bool:
    """True if size and time of change say that nobody has touched the file."""
    return listed.mtime_ns != 0 and _as_listed(known, listed)


def _as_listed(known: Known, listed: Sample) -> bool:
    """True if size and time of change are the same, unknown or not."""
    return (known.seen.num_bytes, known.seen.mtime_ns) == (listed.num_bytes, listed.mtime_ns)


def _has_hash(known: Known) -> bool:
    """True if the picture was read."""
    return bool(known.picture) and not known.picture.startswith("!")


def worth_retrying(columns: Iterable[str], listed: Sample) -> tuple[str, ...]:
    """Of the columns that have rejected a sample those that might take it now: it has what they encode."""
    has_picture = bool(listed.xxh3_128) and not listed.unlisted
    return tuple(column for column in columns if (listed.captions if column == "text" else has_picture))


def compared(known: Known, listed: Sample) -> str:
    """`KEPT`, or what has changed. `listed` is settled."""
    picture, captions = known.picture != picture_of(listed), known.captions != captions_of(listed)
    if picture:
        return BOTH if captions else PICTURE
    return CAPTIONS if captions else KEPT


def replacing(listed: Sample, kind: str, part: str, position: int) -> Sample:
    """A changed sample that knows where what has not changed of it was."""
    was = f"{part}:{position}"
    return replace(
        listed,
        picture_was=was * (kind in (CAPTIONS, RETRIED)),
        captions_was=was * (kind in (PICTURE, RETRIED)),
    )


def retire(part: Part, marks: NDArray[np.uint8]) -> Part | None:
    """A part without those of its samples that are no longer as they were, (samples,) marks.

    None if nothing is left of it.
    """
    gone = np.flatnonzero(marks != SAME)
    return replace(part, retired=runs(gone)) if len(gone) < part.samples else None


def runs(positions: NDArray[np.int64]) -> tuple[tuple[int, int], ...]:
    """Ascending positions as runs, from the first up to but without the second."""
    breaks = np.flatnonzero(np.diff(positions) > 1) + 1
    return tuple((int(run[0]), int(run[-1]) + 1) for run in np.split(positions, breaks) if len(run))
