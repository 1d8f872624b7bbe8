"""Writing a part against writing the same bytes plainly, on the same file system, both flushed to disk."""

import os
import time
from pathlib import Path
from statistics import median

from data_tools.cache.manifest import Cache
from data_tools.cache.plan import plan_source
from data_tools.cache.store import LocalStore
from data_tools.cache.writer import PartWriter
from tests.benchmarks.cache_data import Numbered, column, random_pool, row

ROWS = 2048


def write_ratio(folder: Path, rounds: int) -> str:
    """A table row: MB/s of committing a decoder part, and its ratio to raw writes of the same bytes."""
    store, pool = LocalStore(folder / "write"), random_pool()
    plan = plan_source(store, Numbered(ROWS * rounds), ROWS)
    cache, about = Cache.open(store), column("latents@768")
    cache.declare(about)
    ours, raw = [], []
    for part in plan:
        writer = PartWriter(store, about, part.name)
        rows = [row("latents@768", i, pool) for i in range(ROWS)]
        for i, values in enumerate(rows):
            writer.add(i, str(i), [values])
        started = time.perf_counter()
        writer.commit()
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        with (folder / "raw").open("wb", buffering=0) as file:
            for values in rows:
                file.write(values["latents"].data)
            os.fsync(file.fileno())
        raw.append(time.perf_counter() - started)
    megabytes = sum(values["latents"].nbytes for values in rows) / 1e6
    ratio = median(b / a for a, b in zip(ours, raw))
    return f"| writing decoder parts, MB/s | {megabytes / median(ours):,.0f} | {ratio:.2f} of raw writes |"
