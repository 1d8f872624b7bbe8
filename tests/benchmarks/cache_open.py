"""Two simulations: a store where every request takes 20 ms, and a cache of 25,000 parts."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from data_tools.cache.generation import LOW, Generation
from data_tools.cache.manifest import PLAN, VERSION, Cache, Part, column_folder, dump, sealed
from data_tools.cache.object_store import ObjectStore
from data_tools.cache.reader import CacheReader
from data_tools.cache.store import LocalStore
from data_tools.cache.zarr_part import ZarrPart
from tests.benchmarks.cache_data import PART_SIZE, build_cache, column

LATENCY = 0.02
"Seconds a request."
WINDOW = 2048


class SlowStore(LocalStore):
    """A local folder that answers like an object store: late, and many requests at once."""

    concurrency = ObjectStore.concurrency
    coalesce_bytes = ObjectStore.coalesce_bytes

    def read_into(self, name: str, offset: int, buffers: Sequence[Any]) -> int:
        time.sleep(LATENCY)
        return super().read_into(name, offset, buffers)


def simulated_window(folder: Path) -> str:
    """A table row: seconds for a window of 2,048 records in runs of 32, at 20 ms a request."""
    root = folder / "window"
    build_cache(root, ["latents@768"], PART_SIZE, ZarrPart())
    spent = []
    for _ in range(5):
        reader = CacheReader(SlowStore(root), ["latents@768"])
        runs = np.random.default_rng(0).permutation(PART_SIZE // 32)[: WINDOW // 32]
        samples = (runs[:, None] * 32 + np.arange(32)).reshape(-1)
        rows = reader.rows("latents@768", samples)[0]
        reader.gather("latents@768", rows[:1])
        started = time.perf_counter()
        reader.gather("latents@768", rows)
        spent.append(time.perf_counter() - started)
    return f"| 2,048-record window at 20 ms a request, s | {median(spent):.2f} | |"


def write_large(root: Path, parts: int, part_size: int) -> None:
    """The JSON and generation files of a cache of `parts` · `part_size` samples, without any records."""
    store = LocalStore(root)
    plan = [
        Part(f"part-{i:05d}", part_size, f"samples/part-{i:05d}-00000000.jsonl", "0" * 32)
        for i in range(parts)
    ]
    store.create("cache.json", dump({"format": "kandinsky-cache", "version": VERSION}))
    about = {"part_size": part_size, "samples": parts * part_size}
    store.create(PLAN, sealed({**about, "parts": [asdict(part) for part in plan]}))
    rng = np.random.default_rng(0)
    low = rng.random((parts, part_size), dtype=np.float32) < 1 / 32
    for name in ("image", "text"):
        declared = column(name)
        Cache.open(store).declare(declared)
        names = [part.name for part in plan] + ["null"]
        folder = column_folder(declared)
        rows = np.array([part_size] * parts + [1], dtype=np.int64)
        objects = [
            [f"{folder}/parts/{n}-00000000.zarr/{f.name}/c/0/0" for f in declared.fields] for n in names
        ]
        made = Generation(
            part=np.array(names, dtype=np.bytes_),
            samples=rows,
            rows=rows,
            index=np.array([f"{folder}/parts/{n}-00000000.npz" for n in names], dtype=np.bytes_),
            index_hash=np.array(["0" * 32] * len(names), dtype=np.bytes_),
            object=np.array(objects, dtype=np.bytes_),
            object_size=np.full((len(names), len(declared.fields)), 1, dtype=np.int64),
            field_bytes=np.full((len(names), len(declared.fields)), 1, dtype=np.int64),
            container=np.array(["zarr"] * len(names), dtype=np.bytes_),
            stored_bytes=np.full(len(names), 3, dtype=np.int64),
            encode_seconds=np.full(len(names), 0.5),
            lacking=np.zeros(0, dtype=np.int32),
            lacking_part=np.zeros(0, dtype=np.int32),
            low=np.nonzero(low)[1].astype(np.int32),
            low_part=np.nonzero(low)[0].astype(np.int32),
            low_hash=rng.integers(0, LOW, int(low.sum()), dtype=np.uint64),
            shape=np.zeros((0, 0), dtype=np.int32),
            shape_part=np.zeros(0, dtype=np.int32),
            shape_samples=np.zeros(0, dtype=np.int64),
            lengths=np.full((len(declared.fields), 78), parts * part_size // 78, dtype=np.int64),
            prompt_lines=np.zeros(0, dtype=np.uint8),
            reject_lines=np.zeros(0, dtype=np.uint8),
        )
        store.create(f"{folder}/generations/000001.npz", made.dump())


def open_large(folder: Path, parts: int = 25_000, part_size: int = 4000) -> str:
    """A table row: seconds and memory of opening a simulated cache, in a fresh process."""
    root = folder / "large"
    write_large(root, parts, part_size)
    code = "from tests.benchmarks.cache_open import report_open; import sys; report_open(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    return (
        f"| open a cache of {parts:,} parts, {found['samples']:,} samples | {found['seconds']:.1f} s "
        f"| {found['megabytes']:.0f} MB in all |"
    )


def report_open(root: str) -> None:
    """Open, split off validation, take the first batch's samples; print what it took as JSON."""
    from data_tools.cache.order import Order

    started = time.perf_counter()
    reader = CacheReader(Path(root), ["image", "text"])
    held = reader.held_out(0.02)
    Order.plain(reader.num_samples, np.sort(held), 256, 0).batch(0)
    seconds = time.perf_counter() - started
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent that started this
    megabytes = int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6
    print(json.dumps({"seconds": seconds, "megabytes": megabytes, "samples": reader.num_samples}))
