"""A cache whose source has changed since: random rows, made with the real plans and the real writer."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from data_tools.cache.manifest import Cache
from data_tools.cache.plan import plan_source
from data_tools.cache.store import open_store
from data_tools.cache.writer import PartWriter
from data_tools.sources import Sample
from tests.data_tools.caches import COLUMNS, Listed, Made, build, listed, random_row

REMOVED = ("k1", "k6", "k7", "k8", "k9")
RECAPTIONED, ADDED = "k3", "k14"


def change(root: Path, *, unfinished: bool = False) -> list[Sample]:
    """Plan that some of the samples of `build` are gone, one has another caption and one is new.

    With `unfinished` nothing of what is new is committed. Returns the samples as they are now.
    """
    samples = [
        replace(each, captions=("edited",)) if each.key == RECAPTIONED else each
        for each in listed(15).samples
        if each.key not in REMOVED
    ]
    plan_source(open_store(root), Listed(tuple(samples)), None)
    if not unfinished:
        finish(root, {name: {} for name in COLUMNS})
    return samples


def finish(root: Path, made: Made) -> None:
    """Commit random rows for the live samples of every part that a column lacks; they are put into `made`."""
    cache, rng = Cache.open(open_store(root)), np.random.default_rng(1)
    for name in COLUMNS:
        about = cache.column(name)
        assert about is not None
        for part in cache.plan():
            if part.name in cache.committed(about):
                continue
            writer, table = PartWriter(cache.store, about, part.name), cache.table(part)
            for position in part.positions().tolist():
                row = table[position]
                count = len(row["captions"]) if name == "text" else 1
                made[name][row["key"]] = [random_row(about, rng) for _ in range(count)]
                writer.add(position, row["key"], made[name][row["key"]])
            assert writer.commit()


def build_changed(root: Path, **options: object) -> Made:
    """A cache of 14 samples in parts of 5, then changed; the rows of those that are live."""
    made = build(root, **options)  # type: ignore[arg-type]
    change(root, unfinished=True)
    for keys in made.values():
        for key in (*REMOVED, RECAPTIONED):
            keys.pop(key, None)
    finish(root, made)
    return made
