"""What is different between a plan and the source as it is now: pure functions, one sample or part at a time.

A sample is known by its key. What the encoders see of it are two inputs: the picture, known by the hash of
its file, and the captions. Either may have changed alone, and then only its columns are encoded again. Where
a sample lies, and when its file was touched, are no part of it.
"""

import json
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import xxhash
from numpy.typing import NDArray

from data_tools.cache.manifest import Part
from data_tools.sources import Sample

NEW, REMOVED, KEPT = "new", "removed", "kept"
PICTURE, CAPTIONS, BOTH = "picture", "captions", "picture and captions"
"What has changed of a sample."
FRESH = (NEW, PICTURE, CAPTIONS, BOTH)
"Samples that the next plan adds."
EXAMPLES = 3
"Keys that are shown of each kind."
UNSEEN, SAME, REPLACED, RETIRED = range(4)
"Mark of a planned sample: not (yet) listed, listed as it was, listed otherwise, retired by an earlier plan."


@dataclass(frozen=True)
class Known:
    """What a plan remembers of a sample, short."""

    part: int
    "Number in the plan's list of parts."
    position: int
    "In the part's sample table."
    num_bytes: int
    mtime_ns: int
    place: str
    source: int
    picture: str
    captions: str

    @classmethod
    def of(cls, part: int, position: int, sample: Sample) -> "Known":
        return cls(
            part=part,
            position=position,
            num_bytes=sample.num_bytes,
            mtime_ns=sample.mtime_ns,
            place=sample.place,
            source=sample.source,
            picture=picture_of(sample),
            captions=captions_of(sample),
        )

    def dump(self) -> str:
        return json.dumps([*vars(self).values()])

    @classmethod
    def load(cls, text: str) -> "Known":
        return cls(*json.loads(text))


@dataclass
class Changes:
    """How many samples have changed in which way, and a few of their keys."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, key: str) -> None:
        self.counts[kind] += 1
        if len(keys := self.examples.setdefault(kind, [])) < EXAMPLES:
            keys.append(key)

    def __bool__(self) -> bool:
        return any(count for kind, count in self.counts.items() if kind != KEPT)

    def of_column(self, column: str) -> dict[str, tuple[int, list[str]]]:
        """kept, new, changed and removed as one column sees it: number of samples and a few keys."""
        one, other = (CAPTIONS, PICTURE) if column == "text" else (PICTURE, CAPTIONS)
        kinds = {KEPT: (KEPT, other), NEW: (NEW,), "changed": (one, BOTH), REMOVED: (REMOVED,)}
        return {
            word: (
                sum(self.counts[kind] for kind in some),
                [key for kind in some for key in self.examples.get(kind, [])][:EXAMPLES],
            )
            for word, some in kinds.items()
        }

    def lost(self) -> int:
        """Samples whose picture is no longer in the source."""
        return self.counts[REMOVED] + self.counts[PICTURE] + self.counts[BOTH]

    def __str__(self) -> str:
        changed = sum(self.counts[kind] for kind in (PICTURE, CAPTIONS, BOTH))
        kept, new, removed = (self.counts[kind] for kind in (KEPT, NEW, REMOVED))
        return f"{kept} kept, {new} new, {changed} changed, {removed} removed"


def picture_of(sample: Sample) -> str:
    """The picture as content: its hash, or why there is none; empty if it could not be read."""
    return f"!{sample.problem}" if sample.problem else sample.xxh3_128


def captions_of(sample: Sample) -> str:
    """The captions as content: a hash of them, or of why there are none."""
    text = json.dumps([sample.captions, sample.caption_problem])
    return xxhash.xxh3_128_hexdigest(text.encode())


def wants_hash(known: Known | None, listed: Sample, *, rehash: bool = False) -> bool:
    """True if only reading the file can tell whether a listed sample has the picture that is known.

    So it is where size, time of change or place differ, or where it could not be read before.
    """
    if known is None or listed.problem:
        return False
    as_before = (known.num_bytes, known.mtime_ns, known.place)
    touched = as_before != (listed.num_bytes, listed.mtime_ns, listed.place)
    return rehash or touched or not known.picture or known.picture.startswith("!")


def compared(known: Known, listed: Sample) -> str:
    """`KEPT`, or what has changed. `listed` has the hash of its file."""
    picture, captions = known.picture != picture_of(listed), known.captions != captions_of(listed)
    if picture:
        return BOTH if captions else PICTURE
    return CAPTIONS if captions else KEPT


def replacing(listed: Sample, kind: str, part: str, position: int) -> Sample:
    """A changed sample that knows where what has not changed of it was."""
    was = f"{part}:{position}"
    return replace(listed, picture_was=was * (kind == CAPTIONS), captions_was=was * (kind == PICTURE))


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
