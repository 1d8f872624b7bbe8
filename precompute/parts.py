"""What a run has to do: for each part the columns that lack it, and what the columns hold beside parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_tools.cache.carry import was
from data_tools.cache.listing import Listing, Retry, sample
from data_tools.cache.manifest import NULL_PART, Cache, Part
from data_tools.sources import Sample
from precompute.encoders import Encoder, TextEncoder
from precompute.prompts import Sets


@dataclass(frozen=True)
class Job:
    """A part, for one worker."""

    part: Part
    columns: tuple[str, ...]
    "Those that lack it."
    moved: dict[str, dict[str, Any]]
    "Key → `place` and `source` of a sample that the source has elsewhere now."


@dataclass(frozen=True)
class Conditions:
    """What the columns lack beside parts, for one worker."""

    null: tuple[str, ...]
    "Columns without their null condition."
    sets: Sets
    "Of prompts, for the text column."

    def __bool__(self) -> bool:
        return bool(self.null or self.sets)


@dataclass(frozen=True)
class Todo:
    """What a run has to encode."""

    parts: list[tuple[Part, list[Encoder]]]
    "In order, each with the encoders whose column lacks it."
    null: list[Encoder]
    "Their null conditions."
    sets: Sets
    text: TextEncoder | None
    "Encodes the sets."
    done: dict[str, set[str]]
    "Column → parts that it has."
    retry: Retry
    "Samples that a column has rejected and tries again."

    @classmethod
    def of(
        cls, cache: Cache, plan: list[Part], encoders: Sequence[Encoder], sets: Sets, retry: Retry
    ) -> "Todo":
        """Lists the commit records and reads none."""
        done = {encoder.column.name: cache.committed(encoder.column) for encoder in encoders}
        work = [(part, [e for e in encoders if part.name not in done[e.column.name]]) for part in plan]
        return cls(
            parts=[(part, lacking) for part, lacking in work if lacking],
            null=[e for e in encoders if e.column.has_null and NULL_PART not in done[e.column.name]],
            sets={part: texts for part, texts in sets.items() if part not in done["text"]},
            text=next((e for e in encoders if isinstance(e, TextEncoder)), None),
            done=done,
            retry=retry,
        )

    def encodes(self, encoder: Encoder, listed: Sample) -> bool:
        """True if the rows of a sample are not those of an older part that is there."""
        part, _, _ = was(encoder.column, listed).rpartition(":")
        column = encoder.column.name
        return part not in self.done[column] or column in self.retry.get((part, listed.key), ())

    def needs(self, cache: Cache, encoder: Encoder) -> bool:
        """True if the encoder has anything to encode. Reads sample tables up to the first that says so."""
        if encoder in self.null or (self.sets and encoder is self.text):
            return True
        parts = (part for part, lacking in self.parts if encoder in lacking)
        return any(self.encodes(encoder, each) for part in parts for each in live(cache, part).values())

    @property
    def conditions(self) -> Conditions:
        return Conditions(tuple(encoder.column.name for encoder in self.null), self.sets)

    @property
    def samples(self) -> int:
        return sum(part.live for part, _ in self.parts)

    def jobs(self, cache: Cache, listing: Listing) -> list[Job]:
        """A job for each part. Reads sample tables only if the source has samples elsewhere than they say."""
        return [
            Job(
                part,
                tuple(encoder.column.name for encoder in lacking),
                listing.moved(live(cache, part).values()) if listing.has_moved else {},
            )
            for part, lacking in self.parts
        ]


def live(cache: Cache, part: Part) -> dict[int, Sample]:
    """The samples of a part that are not retired, by their position in its table."""
    table = cache.table(part)
    return {position: sample(table[position]) for position in part.positions().tolist()}
