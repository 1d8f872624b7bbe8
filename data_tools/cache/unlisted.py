"""Places of a source that could not be looked at: what was in them before stays in the plan."""

import re
from collections import Counter
from dataclasses import dataclass, field

SHOWN = 3
"Places that a note names."
TOP = "/"
"The place of a folder that is a source itself."
ENDS = re.compile("[/#:]")
"What the name of something that holds samples ends with: a folder, a tar, a table."


@dataclass
class Unlisted:
    """Memory: the names of these places."""

    places: set[str] = field(default_factory=set)
    "Beginnings of the places of all that is in them."
    kept: Counter[str] = field(default_factory=Counter)
    "Where samples are that stay, and how many."

    def keep(self, place: str) -> None:
        """A planned sample that the source still lists, but could not look at."""
        self.kept[_holders(place)[0]] += 1

    def holds(self, place: str) -> bool:
        """True for a planned sample that may still be there, which is counted."""
        holder = next((holder for holder in _holders(place) if holder in self.places), None)
        if holder is not None:
            self.kept[holder] += 1
        return holder is not None

    def notes(self) -> list[str]:
        """A line about the samples that stay, none if there are none."""
        if not self.kept:
            return []
        most = self.kept.most_common(SHOWN)
        named = [f"{'--data' if place == TOP else place.rstrip('#:')} ({count})" for place, count in most]
        more = f" and {len(self.kept) - SHOWN} more places" if len(self.kept) > SHOWN else ""
        total = self.kept.total()
        return [f"could not be looked at: {', '.join(named)}{more}; samples kept as they were: {total}"]


def _holders(place: str) -> list[str]:
    """What may hold a place, innermost first, and last the folder itself."""
    return [*[place[: end.end()] for end in ENDS.finditer(place)][::-1], TOP]
