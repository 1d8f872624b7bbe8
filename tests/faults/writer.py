"""A writer without models, for processes that are killed: python -m tests.faults.writer CACHE FORMAT SAMPLES

It does what `precompute` does (plan, declarations, parts in order, generations; what is there is left alone),
with rows that follow from column, key and number. Prints `COLUMN PART` for each part that it committed.
"""

import sys
from pathlib import Path

import numpy as np
import xxhash

from data_tools.cache.fields import Column, Row
from data_tools.cache.generation import publish
from data_tools.cache.manifest import NULL_PART, Cache
from data_tools.cache.plan import plan_source
from data_tools.cache.rows import Container
from data_tools.cache.store import open_store
from data_tools.cache.tar_part import TarPart
from data_tools.cache.writer import PartWriter
from data_tools.cache.zarr_part import ZarrPart
from data_tools.sources import Sample
from tests.data_tools.caches import COLUMNS, column, listed, random_row

PART_SIZE = 2
FORMATS = ("zarr", "webdataset")


def fill(place: Path | str, format: str, samples: int, *, parts: int | None = None) -> None:
    """Commit every part that is not, or the first `parts` of them, and publish."""
    store = open_store(place)
    plan = plan_source(store, listed(samples), PART_SIZE)
    cache = Cache.open(store)
    for name in COLUMNS:
        about = column(name)
        cache.declare(about)
        for part in plan[:parts]:
            _write(cache, about, part.name, [Sample(**entry) for entry in cache.table(part)], format)
        if about.has_null:
            _write(cache, about, NULL_PART, [Sample("", ("",), "", 0, 0)], format)
        publish(cache, about, plan)


def rows(about: Column, sample: Sample) -> list[Row]:
    count = len(sample.captions) if about.name == "text" else 1
    seeds = (f"{about.name} {sample.key} {number}".encode() for number in range(count))
    return [random_row(about, np.random.default_rng(xxhash.xxh3_64_intdigest(seed))) for seed in seeds]


def _write(cache: Cache, about: Column, part: str, samples: list[Sample], format: str) -> None:
    if cache.commit(about, part) is not None:
        return
    container: Container = TarPart() if format == "webdataset" else ZarrPart()
    writer = PartWriter(cache.store, about, part, container=container)
    for number, sample in enumerate(samples):
        writer.add(number, sample.key, rows(about, sample))
    if writer.commit():
        print(about.name, part, flush=True)


if __name__ == "__main__":
    fill(sys.argv[1], sys.argv[2], int(sys.argv[3]))
