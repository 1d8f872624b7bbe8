"""A source in memory that changes, and what a plan says of it."""

from dataclasses import dataclass, replace

from data_tools.cache.manifest import Cache, Part
from data_tools.cache.store import LocalStore
from data_tools.sources import Sample, Unusable


@dataclass(frozen=True)
class Picture:
    """One sample of `Shelf`."""

    data: bytes | None
    captions: tuple[str, ...]
    mtime_ns: int = 1
    problem: str = ""
    place: str = ""
    unlisted: str = ""
    fails: bool = False
    "It is listed but cannot be read."


class Shelf:
    """A source in memory: key → picture and captions. Counts what it is asked to read."""

    def __init__(self, pictures: dict[str, Picture]) -> None:
        self.pictures, self.was_read = pictures, []

    @property
    def count(self) -> int:
        return len(self.pictures)

    def __iter__(self):
        for key, p in self.pictures.items():
            size = -1 if p.data is None else len(p.data)
            place, more = p.place or f"{key}.png", {"problem": p.problem, "unlisted": p.unlisted}
            yield Sample(key, p.captions, place, size, p.mtime_ns, **more)

    def read(self, sample: Sample) -> bytes:
        self.was_read.append(sample.key)
        data = self.pictures[sample.key].data
        if data is None or self.pictures[sample.key].fails:
            raise Unusable("no such file")
        return data


def pictures(count: int = 7) -> dict[str, Picture]:
    return {f"k{i}": Picture(b"picture %d" % i, (f"caption {i}",)) for i in range(count)}


def edited(now: dict[str, Picture], key: str, **change: object) -> dict[str, Picture]:
    return {**now, key: replace(now[key], **change)}


def without(now: dict[str, Picture], *keys: str) -> dict[str, Picture]:
    return {key: picture for key, picture in now.items() if key not in keys}


def live(store: LocalStore) -> dict[str, tuple[str, dict]]:
    """Key → part and table line of every sample that is not retired; no key is there twice."""
    cache, found = Cache.open(store), {}
    for part in cache.plan():
        table = cache.table(part)
        for position in part.positions().tolist():
            assert table[position]["key"] not in found
            found[table[position]["key"]] = (part.name, table[position])
    return found


def contents(store: LocalStore) -> dict[str, list]:
    fields = ("captions", "xxh3_128", "problem")
    return {key: [row.get(name) for name in fields] for key, (_, row) in live(store).items()}


def retired(plan: list[Part]) -> dict[str, tuple]:
    return {part.name: part.retired for part in plan if part.retired}


P, Q = b"another picture", b"yet another one"
NEW = Picture(b"new picture", ("new caption",))


def follow() -> dict[str, Picture]:
    """What comes after `pictures`."""
    added = {f"n{i}": replace(NEW, data=b"new %d" % i) for i in range(5)}
    return {**edited(without(pictures(), "k0"), "k4", captions=("edited",)), **added}
