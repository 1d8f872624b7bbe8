"""`make bench-cache`: the reader against np.memmap, plain webdataset and zarr-python, in one interleaved run.

    python -m tests.benchmarks.cache [--samples N] [--rounds N] [--folder DIR]

The ceiling is np.memmap's random gather of whole rows from one file a field, without any check. Every other
figure is a ratio to what was measured beside it in the same round; medians over the rounds are printed.
"""

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from data_tools.cache.order import Order
from data_tools.cache.reader import CacheReader
from data_tools.cache.tar_part import TarPart
from data_tools.cache.zarr_part import ZarrPart
from tests.benchmarks import cache_data
from tests.benchmarks.cache_open import open_large, simulated_window
from tests.benchmarks.cache_write import write_ratio

BATCH = 64
KINDS = {"decoder": ["latents@768"], "prior": ["image", "text"]}
CONTAINERS = {"zarr": ZarrPart(), "tar": TarPart()}
Reader = Callable[[NDArray[np.int64]], Any]


def memmap_reader(folder: Path, names: list[str]) -> Reader:
    """Random rows through np.memmap into a fresh batch; ragged ones padded, as the cache's reader does."""
    arrays = {
        path.stem: np.load(path, mmap_mode="r") for name in names for path in (folder / name).glob("*.npy")
    }

    def read(samples: NDArray[np.int64]) -> Any:
        batch = {}
        for key, array in arrays.items():
            if key.endswith("_offsets"):
                continue
            if f"{key}_offsets" not in arrays:
                batch[key] = array[samples]
                continue
            offsets = arrays[f"{key}_offsets"]
            lengths = offsets[samples + 1] - offsets[samples]
            batch[key] = np.zeros((len(samples), lengths.max(), array.shape[1]), array.dtype)
            for place, start, length in zip(batch[key], offsets[samples], lengths):
                place[:length] = array[start : start + length]
        return batch

    return read


def cache_reader(root: Path, names: list[str]) -> Reader:
    """Ours, with every record's crc32c checked every time."""
    reader = CacheReader(root, names, paranoid=True)

    def read(samples: NDArray[np.int64]) -> Any:
        return [reader.gather(name, reader.rows(name, samples)[0]) for name in names]

    return read


def zarr_reader(root: Path, names: list[str]) -> Reader:
    """Rows of the same shards through zarr-python's orthogonal indexing, part by part."""
    import zarr

    groups = {
        name: [
            zarr.open_group(path, mode="r")
            for path in sorted(root.glob(f"columns/{name}/*/parts/part-*.zarr"))
        ]
        for name in names
    }

    def read(samples: NDArray[np.int64]) -> Any:
        found = []
        for name in names:
            for part in np.unique(samples // cache_data.PART_SIZE):
                group = groups[name][part]
                local = samples[samples // cache_data.PART_SIZE == part] % cache_data.PART_SIZE
                for field in cache_data.COLUMNS[name]:
                    if field.ragged:
                        offsets = group[f"{field.name}_offsets"][:]
                        found += [group[field.name][offsets[i] : offsets[i + 1]] for i in local]
                    else:
                        found.append(group[field.name].oindex[np.sort(local)])
        return found

    return read


def rate(read: Reader, num_samples: int, seconds: float, seed: int) -> float:
    """Samples per second over batches of a shuffled epoch, until the time is up."""
    order = Order.plain(num_samples, np.zeros(0, dtype=np.int64), BATCH, seed)
    batches = [order.batch(step).sample for step in range(num_samples // BATCH)]
    started, step = time.perf_counter(), 0
    while (spent := time.perf_counter() - started) < seconds or not step:
        read(batches[step % len(batches)])
        step += 1
    return step * BATCH / spent


def webdataset_rate(path: Path, seconds: float) -> float:
    """Samples per second of plain `webdataset`, one sample a key, `.decode()`, batches stacked by hand."""
    import webdataset

    started, count = time.perf_counter(), 0
    for _ in webdataset.WebDataset(str(path), shardshuffle=False).decode():
        count += 1
        if time.perf_counter() - started > seconds:
            break
    return count / (time.perf_counter() - started)


def first_batch(root: Path, names: list[str]) -> float:
    """Milliseconds from nothing to the first batch, page cache warm."""
    started = time.perf_counter()
    reader = CacheReader(root, names)
    samples = Order.plain(reader.num_samples, np.zeros(0, dtype=np.int64), BATCH, 1).batch(0).sample
    for name in names:
        reader.gather(name, reader.rows(name, samples)[0])
    return (time.perf_counter() - started) * 1e3


def bench_kind(folder: Path, kind: str, samples: int, rounds: int, seconds: float) -> list[str]:
    """One table row a figure, for the decoder's or the prior's records."""
    names = KINDS[kind]
    for container, store in CONTAINERS.items():
        cache_data.build_cache(folder / kind / container, names, samples, store)
    for name in names:
        cache_data.build_npy(folder / kind / "npy" / name, name, samples)
    cache_data.build_classic_tar(folder / kind / "classic.tar", names[-1], min(samples, 4096))
    readers = {name: cache_reader(folder / kind / name, names) for name in CONTAINERS}
    ceiling = memmap_reader(folder / kind / "npy", names)
    python = zarr_reader(folder / kind / "zarr", names)
    for read in (*readers.values(), ceiling):  # warm the page cache
        rate(read, samples, 4 * seconds, 0)
    seen: dict[str, list[float]] = {name: [] for name in ("memmap", *CONTAINERS, "webdataset", "zarr-python")}
    for number in range(rounds):
        seen["memmap"].append(rate(ceiling, samples, seconds, number))
        for name, read in readers.items():
            seen[name].append(rate(read, samples, seconds, number))
        seen["webdataset"].append(webdataset_rate(folder / kind / "classic.tar", seconds))
        seen["zarr-python"].append(rate(python, samples, seconds, number))
    lines = [f"| {kind} records/s, np.memmap random gather | {median(seen['memmap']):,.0f} | 1 |"]
    for name in CONTAINERS:
        ratio = median(a / b for a, b in zip(seen[name], seen["memmap"]))
        lines.append(
            f"| {kind} records/s, {name}, every crc32c checked | {median(seen[name]):,.0f} | {ratio:.2f} |"
        )
    for other in ("webdataset", "zarr-python"):
        ratio = median(a / b for a, b in zip(seen["zarr"], seen[other]))
        lines.append(f"| zarr against {other}, {kind} | {median(seen[other]):,.0f} | {ratio:,.0f}x |")
    warm = median(first_batch(folder / kind / "zarr", names) for _ in range(5))
    lines.append(f"| {kind}, open and first batch, warm | {warm:.0f} ms | |")
    return lines


@click.command()
@click.option("--samples", default=32_768, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=1.0, show_default=True, help="Of each measurement.")
@click.option("--folder", type=click.Path(path_type=Path), help="For the data; deleted afterwards.")
def main(samples: int, rounds: int, seconds: float, folder: Path | None) -> None:
    """Print a markdown table of what the cache's reader does."""
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        lines = ["| what | figure | ratio |", "|---|---:|---:|"]
        for kind in KINDS:
            lines += bench_kind(place, kind, samples, rounds, seconds)
            shutil.rmtree(place / kind)
        lines += [write_ratio(place, rounds), simulated_window(place), open_large(place)]
    finally:
        shutil.rmtree(place)
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks.cache")
