"""What a run has done and where its time went: the closing lines, and the same as JSON."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Summary:
    """Of one worker, or of several: they add up."""

    samples: int = 0
    seconds: float = 0.0
    "That the workers worked, one after the other."
    waited_for_pictures: float = 0.0
    "Seconds in which the encoders had nothing to do but wait for decoded pictures."
    waited_for_writer: float = 0.0
    "And for the part before to be on disk."
    truncated: int = 0
    "Captions longer than the tokenizer takes."
    redone: int = 0
    "Rows that were not finite and were encoded again in float32."
    encode_seconds: dict[str, float] = field(default_factory=dict)
    "Column → seconds of its encoder."
    carried: Counter[str] = field(default_factory=Counter)
    "Column → samples whose rows were taken over from an older part."
    batch_sizes: dict[str, int] = field(default_factory=dict)
    "Column → the batch size that a full memory has left."
    notes: list[str] = field(default_factory=list)

    def __add__(self, other: "Summary") -> "Summary":
        by_column = ("encode_seconds", "batch_sizes")
        added = {name: value for name, value in vars(self).items() if name not in by_column}
        return Summary(
            **{name: value + vars(other)[name] for name, value in added.items()},
            encode_seconds=_merged(sum, self.encode_seconds, other.encode_seconds),
            batch_sizes=_merged(min, self.batch_sizes, other.batch_sizes),
        )

    def lines(self) -> list[str]:
        lines = list(self.notes)
        if self.samples:
            rate = f"{self.samples / self.seconds:.1f} samples/s"
            lines.append(
                f"encoded {self.samples} samples in {self.seconds:.1f} s ({rate}); the encoders "
                f"waited {self._share(self.waited_for_pictures):.0%} of the time for pictures and "
                f"{self._share(self.waited_for_writer):.0%} for the writer"
            )
        if self.carried:
            counts = ", ".join(f"{column} of {count}" for column, count in self.carried.items())
            lines.append(f"taken over from older parts, as nothing of it has changed: {counts} samples")
        if self.truncated:
            lines.append(f"{self.truncated} captions were longer than the tokenizer takes and were truncated")
        if self.redone:
            lines.append(f"{self.redone} rows came out as NaN or infinity and were encoded again in float32")
        for column, size in self.batch_sizes.items():
            lines.append(f"{column}: the GPU's memory was full; batches were made smaller, down to {size}")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Plain numbers; shares are of `seconds`."""
        return {
            "samples": self.samples,
            "seconds": round(self.seconds, 3),
            "samples_per_second": round(self.samples / self.seconds, 3) if self.seconds else 0.0,
            "waited_for_pictures": round(self._share(self.waited_for_pictures), 4),
            "waited_for_writer": round(self._share(self.waited_for_writer), 4),
            "encode_seconds": {name: round(seconds, 3) for name, seconds in self.encode_seconds.items()},
            "truncated_captions": self.truncated,
            "redone_in_float32": self.redone,
            "taken_over": dict(self.carried),
            "batch_sizes": self.batch_sizes,
        }

    def waits(self, seconds: float) -> str:
        """What the encoders have waited for in so many seconds, for a progress bar."""
        pictures, writer = (
            waited / seconds if seconds else 0.0
            for waited in (self.waited_for_pictures, self.waited_for_writer)
        )
        return f"waited for pictures {pictures:.0%}, for the writer {writer:.0%}"

    def _share(self, seconds: float) -> float:
        return seconds / self.seconds if self.seconds else 0.0


def _merged(how: Callable[[list[Any]], Any], *counts: dict[str, Any]) -> dict[str, Any]:
    """Each key with its values, added or whatever `how` does with them."""
    return {key: how([each[key] for each in counts if key in each]) for key in {**counts[0], **counts[1]}}
