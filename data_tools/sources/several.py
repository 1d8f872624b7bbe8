"""Several sources, one after the other, as one; and a choice of their samples."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from data_tools.errors import UserError
from data_tools.sources.keys import Names
from data_tools.sources.sample import Sample, Source, Unusable


class NothingUsable(UserError):
    """A source ends without a picture that can be used; among others, it has said why in its samples."""


@dataclass(frozen=True)
class Several:
    """Samples keep the keys that they have in their own source; no two may have the same.

    What is no sample, but a file that cannot be listed, takes a number behind its key where that is taken.
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
        """All samples. Raises `UserError` for a key that comes twice, and if not one can be used."""
        usable, nothing = False, None
        with closing(Names()) as keys:
            for number, source in enumerate(self.sources):
                try:
                    for sample in source:
                        usable |= not sample.problem
                        yield replace(sample, key=self._entered(keys, sample, number), source=number)
                except NothingUsable as err:
                    nothing = nothing or err
        if nothing is not None and not usable:
            raise nothing

    def _entered(self, keys: Names, sample: Sample, number: int) -> str:
        """The key, which is in `keys` from now on. Raises `UserError` if it was there."""
        place = "" if sample.place == sample.key else sample.place
        if (first := keys.add(sample.key, f"{number} {place}")) is None:
            return sample.key
        if place or not sample.problem or sample.num_bytes >= 0:
            raise UserError(self._clash(sample, number, first))
        numbered = (f"{sample.key} ({again})" for again in count(2))
        return next(key for key in numbered if keys.add(key, f"{number} {place}") is None)

    def _clash(self, sample: Sample, number: int, first: str) -> str:
        other, _, place = first.partition(" ")
        names = self.names[int(other)], self.names[number]
        if int(other) == number:
            advice = "rename one; what belongs to one sample must follow each other in a tar or a table"
        elif os.path.realpath(names[0]) == os.path.realpath(names[1]):
            advice = "give the same --data once"
        else:
            advice = "rename one; of two folders, --data with the folder above both has keys that differ"
        both = f"{names[0]} ({place or sample.key}) and from {names[1]} ({sample.place})"
        return f"--data: the key {sample.key!r} comes twice, from {both}; {advice}"


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
