"""Which caches a command was given, and how much of each: `--cache PLACE[=WEIGHT]`, as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_tools.cache.store import local_folder
from data_tools.errors import UserError

LEAST_WEIGHT = 1e-6
"Shares are kept as integers of 31 bits."


@dataclass(frozen=True)
class CachePlace:
    """One `--cache`."""

    place: str
    "A folder, or a URL that `open_store` takes."
    weight: float | None = None

    @classmethod
    def parse(cls, text: str) -> "CachePlace":
        """PLACE or PLACE=WEIGHT. Raises `UserError` for a weight that no share can have.

        A weight is what follows the last `=` if it is a number; a folder of the whole name is a place.
        """
        place, equals, number = text.rpartition("=")
        try:
            weight = float(number)
        except ValueError:
            return cls(text)
        if not equals or ((folder := local_folder(text)) is not None and folder.is_dir()):
            return cls(text)
        if not place:
            raise UserError(f"--cache: found {text}, wanted a folder or URL before the weight")
        if not LEAST_WEIGHT <= weight <= 1 / LEAST_WEIGHT:
            wanted = f"{LEAST_WEIGHT:g} to {1 / LEAST_WEIGHT:g}"
            raise UserError(f"--cache: {place} has weight {number}, wanted a number from {wanted}")
        return cls(place, weight)

    @property
    def is_remote(self) -> bool:
        """True for an object store."""
        return local_folder(self.place) is None


def parse_places(texts: Sequence[str]) -> tuple[CachePlace, ...]:
    """All `--cache` of a command. Raises `UserError` for a cache that is given twice."""
    places = tuple(CachePlace.parse(text) for text in texts)
    seen: set[str | Path] = set()
    for given in places:
        folder = local_folder(given.place)
        where = given.place.rstrip("/") if folder is None else folder.resolve()
        if where in seen:
            raise UserError(f"--cache: {given.place} is given twice; give it once, with a weight if need be")
        seen.add(where)
    return places
