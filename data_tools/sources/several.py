"""Several sources, one after the other, as one; and a choice of their samples."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from data_tools.errors import UserError
from data_tools.sources.keys import Names
from data_tools.sources.sample import Sample, Source, Unusable


@dataclass(frozen=True)
class Several:
    """Samples keep the keys that they have in their own source; no two may have the same.

    Raises `UserError` while it is gone through: for a key that comes twice, and at its end for keys of
    `select` that did not come. Memory does not grow with the sources: the keys are kept in a temporary file.
    """

    sources: tuple[Source, ...]
    names: tuple[str, ...]
    "What `--data` says, of each."
    max_samples: int | None = None
    "Only the first so many."
    select: frozenset[str] | None = None
    "Only samples with these keys."
    select_name: str = ""
    "The file that they are from."

    @property
    def count(self) -> int | None:
        """Number of samples; None if one of the sources cannot tell before it is read."""
        total: int | None = 0
        if self.select is not None:
            total = len(self.select)
        else:
            for source in self.sources:
                total = None if total is None or (count := source.count) is None else total + count
        return total if self.max_samples is None or total is None else min(total, self.max_samples)

    def __iter__(self) -> Iterator[Sample]:
        left = set(self.select or ())
        taken = 0
        for sample in self._checked():
            if self.select is not None and sample.key not in left:
                continue
            left.discard(sample.key)
            yield sample
            taken += 1
            if taken == self.max_samples:
                return
        if left:
            found = f"{len(left)} of {len(self.select or ())} keys are not in --data"
            raise UserError(f"--select: {self.select_name}: {found}, for example {min(left)!r}")

    def read(self, sample: Sample) -> bytes:
        """The picture's file, from the source that listed it. Raises `Unusable`."""
        if sample.problem:
            raise Unusable(sample.problem)
        return self.sources[sample.source].read(sample)

    def _checked(self) -> Iterator[Sample]:
        """All samples. Raises `UserError` for a key that comes twice."""
        with closing(Names()) as keys:
            for number, source in enumerate(self.sources):
                for sample in source:
                    place = "" if sample.place == sample.key else sample.place
                    if (first := keys.add(sample.key, f"{number} {place}")) is not None:
                        raise UserError(self._clash(sample, number, first))
                    yield replace(sample, source=number) if number else sample

    def _clash(self, sample: Sample, number: int, first: str) -> str:
        other, _, place = first.partition(" ")
        one = f"{self.names[int(other)]} ({place or sample.key})"
        two = f"{self.names[number]} ({sample.place})"
        advice = "rename one; of two folders, --data with the folder above both has keys that differ"
        return f"--data: the key {sample.key!r} comes twice, from {one} and from {two}; {advice}"


def selected(path: Path) -> frozenset[str]:
    """The keys in a text file, one a line. Raises `UserError`."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as err:
        raise UserError(f"--select: {path}: cannot be read: {err.strerror or err}") from None
    except UnicodeDecodeError as err:
        raise UserError(f"--select: {path}: not UTF-8 (byte {err.start}); wanted a key a line") from None
    keys = frozenset(line.removesuffix("\r") for line in text.split("\n")) - {""}
    if not keys:
        raise UserError(f"--select: {path}: found no key; wanted one a line")
    return keys
