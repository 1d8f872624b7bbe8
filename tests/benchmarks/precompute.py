"""`make bench-precompute`: `precompute` against its own encoders, and against a loop of `datasets.map`.

    python -m tests.benchmarks.precompute [--rounds N] [--samples N] [--captions N] [--folder DIR]

On the CPU, with encoders that have the published models' proportions of FLOPs. They compute in one thread,
whoever calls them: that core stands for the GPU, the others decode and write. Per column and for the whole,
three sides take turns: the bare encoders on preloaded tensors; the command `precompute`, from nothing to a
published cache (source listed, models hashed and loaded, decode, encode, commit); `precompute_alternative`,
from nothing to its last file. Before that the outputs of these two are held against each other. "Once loaded"
is from the first batch to the last commit or file, models loaded and source listed.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import torch

from data_tools.cache.reader import CacheReader
from tests.benchmarks import precompute_bare as bare
from tests.benchmarks import precompute_command as command
from tests.benchmarks import precompute_data as data
from tests.benchmarks import precompute_memory as memory
from tests.benchmarks import precompute_models as models
from tests.benchmarks.precompute_alternative import Alternative, read
from tests.benchmarks.precompute_floor import floor

BATCH_SIZE = 16
WANTED = {"text": 3.0}
"Times the rate of the alternative; the others: 1."
WANTED_OF_BARE = 0.9
HEADS = (
    *("columns", "samples", "bare encoders/s", "`precompute`/s", "of bare", "wanted", "of bare, once loaded"),
    *("waited for pictures", "`datasets.map`/s", "ratio", "ratio, once loaded", "wanted"),
)
CHECKED = 48
"Samples of which all outputs are compared first."
TOLERANCE = 4e-3
"Largest difference, as a share of the largest value: a few steps of half precision."


@dataclass(frozen=True)
class Bench:
    """What all measurements share."""

    folder: Path
    "Has `models`, `pictures` and `captions`: a source of as many pictures as there are captions."
    captions: list[str]
    chosen: models.EncoderSet

    @classmethod
    def write(cls, folder: Path, chosen: models.EncoderSet, pictures: int, captions: int) -> "Bench":
        texts = data.captions(max(captions, pictures))
        models.write_models(folder / "models", chosen, texts)
        data.write_data(folder / "pictures", texts[:pictures], distinct=64)
        data.write_data(folder / "captions", texts, distinct=1)
        return cls(folder, texts, chosen)

    @property
    def latents(self) -> str:
        return f"latents@{self.chosen.resolution}"

    @property
    def whole(self) -> tuple[str, ...]:
        return ("image", "text", self.latents)

    @property
    def settings(self) -> bare.Settings:
        return bare.Settings("cpu", torch.float32, BATCH_SIZE)

    def data(self, columns: tuple[str, ...]) -> Path:
        return self.folder / ("captions" if columns == ("text",) else "pictures")

    def ours(self, columns: tuple[str, ...], count: int, cache: Path) -> dict[str, Any]:
        """What the command says; leaves a cache."""
        sizes = ("--max-samples", count, "--batch-size", BATCH_SIZE)
        machine = ("--device", "cpu", "--workers", max(1, (os.cpu_count() or 1) - 1))
        repos = self.folder / "models"
        return command.run(command.arguments(self.data(columns), repos, cache, columns, *sizes, *machine))

    def alternative(self, columns: tuple[str, ...], count: int, out: Path) -> dict[str, float]:
        """Seconds as `ours` has them: `wall` from nothing, `seconds` once the models are loaded."""
        started = time.perf_counter()
        loop = Alternative(self.folder / "models", columns, BATCH_SIZE)
        loaded = time.perf_counter()
        loop.run(self.data(columns), out, count)
        return {"wall": time.perf_counter() - started, "seconds": time.perf_counter() - loaded}

    def encoders(self, columns: tuple[str, ...], count: int) -> Callable[[], dict[str, float]]:
        """Of the bare encoders of these columns, one after the other: seconds, with nothing to load."""
        folder, settings = self.folder / "models", self.settings
        made = {
            "image": lambda: bare.vision(folder, count, settings),
            "text": lambda: bare.text(folder, self.captions[:count], settings),
            self.latents: lambda: bare.movq(folder, self.chosen.resolution, count, settings),
        }
        chosen = [made[name]() for name in columns]

        def run() -> dict[str, float]:
            seconds = sum(each.seconds() for each in chosen)
            return {"wall": seconds, "seconds": seconds}

        return run


def compare(bench: Bench, count: int) -> dict[str, float]:
    """Output → largest difference between both sides in `count` samples, as a share of the largest value."""
    cache, out, whole = bench.folder / "checked-cache", bench.folder / "checked-npy", bench.whole
    bench.ours(whole, count, cache)
    bench.alternative(whole, count, out)
    reader = CacheReader(cache, list(whole))
    ours: dict[str, Any] = {}
    for name in whole:
        ours |= reader.gather(name, reader.rows(name)[0])
    lengths = reader.lengths("text", reader.rows("text")[0])
    reader.close()
    names = ("image_embeds", "prompt_embeds", "latents", "text_encoder_hidden_states")
    theirs = {name: read(out, name) for name in names}
    assert (read(out, "mask").sum(axis=1) == lengths).all()
    for side in (ours, theirs):  # without the padding
        rows = side["text_encoder_hidden_states"]
        side["text_encoder_hidden_states"] = np.concatenate([row[:n] for row, n in zip(rows, lengths)])
    return {name: _error(ours[name], theirs[name]) for name in names}


def _error(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    differences = np.abs(ours.astype(np.float32) - theirs.astype(np.float32))
    return float(differences.max() / np.abs(theirs).max())


def measure(bench: Bench, columns: tuple[str, ...], count: int, rounds: int) -> str:
    """A row of the table: samples a second of all sides, medians; ratios of sides of one round."""
    cache, out = bench.folder / "cache", bench.folder / "npy"
    sides: dict[str, Callable[[], dict[str, Any]]] = {
        "bare": bench.encoders(columns, count),
        "ours": lambda: bench.ours(columns, count, cache),
        "alternative": lambda: bench.alternative(columns, count, out),
    }
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    sides["bare"]()  # a warm-up
    for number in range(rounds):
        for name in [*sides][number % 3 :] + [*sides][: number % 3]:  # who goes first takes turns
            seen[name].append(sides[name]())
            shutil.rmtree(cache, ignore_errors=True)
            shutil.rmtree(out, ignore_errors=True)

    def times(other: str, kind: str) -> float:
        return median(a[kind] / b[kind] for a, b in zip(seen[other], seen["ours"]))

    name = "whole" if columns == bench.whole else columns[0]
    rate = {side: f"{count / median(each['wall'] for each in found):,.1f}" for side, found in seen.items()}
    share, ratio = times("bare", "wall"), times("alternative", "seconds")
    least_share, least_ratio = WANTED_OF_BARE * (name == "whole"), WANTED.get(name, 1.0)
    waited = median(each["waited_for_pictures"] for each in seen["ours"])
    cells = [name, f"{count}", rate["bare"], rate["ours"], f"{share:.2f}", _wanted(share, least_share)]
    cells += [f"{times('bare', 'seconds'):.2f}", f"{waited:.0%}", rate["alternative"]]
    cells += [f"{times('alternative', 'wall'):.2f}x", f"{ratio:.2f}x", _wanted(ratio, least_ratio)]
    return f"| {' | '.join(cells)} |"


def _wanted(found: float, least: float) -> str:
    return (f"{least:g}" + ", **missed**" * (found < least)) if least else ""


def memory_row(folder: Path) -> str:
    """A line: peak memory of few and of many samples."""
    few, many = memory.measure(folder)
    counts = " and ".join(f"{count:,}" for count in memory.COUNTS)
    ratio = many / few
    missed = "" if ratio <= 1.1 else ", **missed**"
    return (
        f"| peak memory at {counts} samples | {few / 1e6:.0f} and {many / 1e6:.0f} MB | {ratio:.2f}x "
        f"| at most 1.1x{missed} |"
    )


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--samples", default=160, show_default=True, help="Pictures of a measurement.")
@click.option("--captions", default=2048, show_default=True, help="Captions of the text column's.")
@click.option("--only", type=click.Choice(["image", "text", "latents", "whole", "memory"]), multiple=True)
@click.option("--folder", type=click.Path(path_type=Path), help="For the data; deleted afterwards.")
def main(rounds: int, samples: int, captions: int, only: tuple[str, ...], folder: Path | None) -> None:
    """Print what bounds both sides, then tables of what was measured."""
    torch.set_num_threads(1)
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        bench = Bench.write(place, models.PROPORTIONAL, max(samples, CHECKED), captions)
        click.echo("\n".join(floor(place, bench.chosen, bench.whole)))
        click.echo(f"captions: {data.lengths_of(bare.tokenize(place / 'models', bench.captions))}")
        found = compare(bench, CHECKED)
        shown = ", ".join(f"{name} {error:.0e}" for name, error in found.items())
        click.echo(f"largest differences between both sides, of the largest value: {shown}\n")
        assert max(found.values()) <= TOLERANCE
        click.echo(f"| {' | '.join(HEADS)} |\n|---|{'---:|' * (len(HEADS) - 1)}")
        columns = {"image": ("image",), "text": ("text",), "latents": (bench.latents,), "whole": bench.whole}
        for name, chosen in columns.items():
            if not only or name in only:
                click.echo(measure(bench, chosen, captions if name == "text" else samples, rounds))
        if not only or "memory" in only:
            click.echo("\n| what | figure | ratio | wanted |\n|---|---:|---:|---:|")
            click.echo(memory_row(place / "memory"))
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks.precompute")
