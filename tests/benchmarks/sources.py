"""`make bench-sources`: pictures to the encoders' pixels against plain PIL doing the same, in turn.

    python -m tests.benchmarks.sources [--rounds N] [--seconds S]

Plain PIL is the reference scripts' recipe without any check: open, `convert("RGB")`, centre crop, bicubic
resize, an array of bytes. One thread: medians over the rounds, the ratio that of figures of one
round. Two threads: the best round of two against the best of one, since on a shared machine most rounds
do not get two cores; beside it what two threads of `zlib.crc32` gain, which need neither the GIL nor memory.
"""

import io
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data_tools import crops, images

Work = Callable[[], Any]


def photograph(side: int) -> Image.Image:
    """Smooth shapes with grain: compresses about as a photograph does."""
    draws = np.random.default_rng(0)
    coarse = Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    shapes = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = draws.integers(-6, 7, (side, side, 1), dtype=np.int16)
    return Image.fromarray((shapes + grain).clip(0, 255).astype(np.uint8))


def file_of(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def ours(data: bytes, resolution: int) -> NDArray[np.uint8]:
    return crops.cover(images.decode(data), (resolution, resolution))


def plain(data: bytes, resolution: int) -> NDArray[np.uint8]:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    image = image.crop((left, top, left + side, top + side))
    return np.array(image.resize((resolution, resolution), Image.Resampling.BICUBIC, reducing_gap=1))


def rate(work: Work, pool: ThreadPoolExecutor | None, count: int) -> float:
    """Pictures per second of `count` calls, here or in the pool's threads."""
    started = time.perf_counter()
    for _ in pool.map(lambda _: work(), range(count)) if pool else (work() for _ in range(count)):
        pass
    return count / (time.perf_counter() - started)


def bench(name: str, data: bytes, resolution: int, rounds: int, seconds: float) -> str:
    """One row of the table."""
    assert np.array_equal(ours(data, resolution), plain(data, resolution))
    block = bytes(20_000_000)
    sides: dict[str, Work] = {
        "ours": lambda: ours(data, resolution),
        "plain": lambda: plain(data, resolution),
        "crc32": lambda: zlib.crc32(block),
    }
    counts = {side: max(4, round(rate(work, None, 4) * seconds)) for side, work in sides.items()}
    seen: dict[tuple[str, int], list[float]] = {(side, threads): [] for side in sides for threads in (1, 2)}
    with ThreadPoolExecutor(2) as two:
        for number in range(rounds):
            for side, threads in sorted(seen, reverse=number % 2 == 1):  # who goes first takes turns
                pool = two if threads == 2 else None
                seen[side, threads].append(rate(sides[side], pool, counts[side]))
    ratio = median(a / b for a, b in zip(seen["ours", 1], seen["plain", 1]))
    gains = [max(seen[side, 2]) / max(seen[side, 1]) for side in sides]
    return (
        f"| {name} to {resolution} | {median(seen['ours', 1]):.0f} | {median(seen['plain', 1]):.0f}"
        f" | {ratio:.2f} | {' | '.join(f'{gain:.2f}' for gain in gains)} |"
    )


@click.command()
@click.option("--rounds", default=60, show_default=True)
@click.option("--seconds", default=0.08, show_default=True, help="Of each measurement.")
def main(rounds: int, seconds: float) -> None:
    """Print a markdown table of decode + preprocess rates."""
    jpeg = file_of(photograph(1024), "jpeg", quality=90)
    png = file_of(photograph(512), "png")
    click.echo(f"JPEG 1024²: {len(jpeg) / 1e3:.0f} KB, PNG 512²: {len(png) / 1e3:.0f} KB")
    click.echo(
        "| picture | ours/s | PIL/s | ratio | ours, two threads | PIL, two threads | crc32, two threads |"
    )
    click.echo("|---|---:|---:|---:|---:|---:|---:|")
    for name, data, resolution in (
        ("JPEG 1024²", jpeg, 512),
        ("JPEG 1024²", jpeg, 768),
        ("PNG 512²", png, 512),
    ):
        click.echo(bench(name, data, resolution, rounds, seconds))


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks.sources")
