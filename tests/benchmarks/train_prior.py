"""`make bench-train-prior`: a step of `train-prior` against the reference's with its encoders, on the CPU.

    python -m tests.benchmarks.train_prior [--rounds N] [--only SECTION]… [--folder DIR] [--small]

The models have the published ones' proportions of FLOPs, and all compute in one thread. The cached side
begins at the records on disk, in a cache made by `precompute`; the online side at pixels that lie in memory
already (of this the ratio is taken), or at picture files. Each is measured at the batch size that suits it
best; the cached one for whole epochs, so that all lengths of captions are in it. Sides take turns; figures
are medians over the rounds, ratios of one round.

Sections: steps (samples/s, draws/s, share of the matrix rate), loop (the whole command against its bare
update), memory, draws (variance and cost of several noise draws).
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

import click
import torch

from tests.benchmarks import noise_draws
from tests.benchmarks import train_prior_data as data
from tests.benchmarks import train_prior_loop as loop
from tests.benchmarks import train_prior_memory as memory
from tests.benchmarks import train_prior_models as models
from tests.benchmarks.precompute_floor import matrix_rate
from tests.benchmarks.train_prior_sides import Cached, Online, seconds

WANTED = 8.0
"Times the samples/s of the reference."
WANTED_OF_BARE = 0.95
WANTED_DRAWS = 2.5
"Times the draws/s of one draw, for four."
DRAWS = 4
SECTIONS = ("steps", "loop", "memory", "draws")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    chosen: models.ModelSet
    samples: int
    side: int
    "Pixels a side, of a square of as many pixels as a picture has."
    cached_sizes: tuple[int, ...]
    online_sizes: tuple[int, ...]
    matrix_side: int
    noise: tuple[int, int]
    "Steps and batches of `noise_draws`."


FULL = Plan(models.PROPORTIONAL, 512, 1024, (8, 16, 32, 64), (4, 8, 16, 32), 1024, (150, 50))
SMALL = Plan(models.TINY, 16, 128, (4, 8), (2, 4), 128, (2, 2))


@dataclass(frozen=True)
class Bench:
    plan: Plan
    folder: Path
    rounds: int

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    @property
    def repo(self) -> Path:
        return self.folder / "models" / "prior"

    def cached(self, batch_size: int, num_draws: int = 1) -> Cached:
        flags = ("--train-batch-size", batch_size, "--noise-draws", num_draws)
        side = Cached.open(self.cache, self.repo, *flags)
        side.update(0, side.read(0))  # a warm-up
        return side

    def online(self, num_preloaded: int) -> Online:
        return data.online(self.folder / "models", self.folder / "pictures", num_preloaded=num_preloaded)


def cached_rate(side: Cached) -> float:
    """samples/s of an epoch, from disk."""
    steps = side.updates_an_epoch
    taken = seconds(CPU, lambda step: side.update(step, side.read(step)), range(steps))
    return steps * side.batches.share.global_batch_size / taken


def online_rate(side: Online, batch_size: int, steps: int, *, from_files: bool = False) -> float:
    taken = seconds(CPU, lambda step: side.update(step, batch_size, from_files=from_files), range(steps))
    return steps * batch_size / taken


def cached_work(plan: Plan, side: Cached) -> float:
    """FLOPs of a sample, mean over an epoch."""
    return mean(side.work(plan.chosen, side.read(step)) for step in range(side.updates_an_epoch))


def proportions(plan: Plan) -> Iterator[str]:
    published, these = models.flops(models.PUBLISHED), models.flops(plan.chosen)
    yield "| GFLOP of a sample | text at 77 | vision | prior forward at 77 | of vision |"
    yield "|---|---:|---:|---:|---:|"
    for title, counted in (("wanted, the published models", published), ("found, these", these)):
        cells = [f"{value / 1e9:,.3f}" for value in counted.values()]
        shares = " : ".join(f"{value / counted['vision']:.3f}" for value in counted.values())
        yield f"| {title} | {' | '.join(cells)} | {shares} |"


def best_sizes(bench: Bench) -> tuple[int, int, Iterator[str]]:
    """The batch sizes of the most samples/s, of the cached and of the online side; and a table."""
    plan = bench.plan
    _say("batch sizes, from the cache")
    cached = {size: cached_rate(bench.cached(size)) for size in plan.cached_sizes}
    _say("batch sizes, with the encoders")
    online = bench.online(plan.online_sizes[-1])
    online_rate(online, plan.online_sizes[0], 1)  # a warm-up
    found = {size: online_rate(online, size, max(1, 32 // size)) for size in plan.online_sizes}
    lines = ["| batch size | from the cache, samples/s | with the encoders, samples/s |", "|---:|---:|---:|"]
    for size in sorted({*cached, *found}):
        cells = [f"{each[size]:,.1f}" if size in each else "" for each in (cached, found)]
        lines.append(f"| {size} | {' | '.join(cells)} |")
    return max(cached, key=cached.__getitem__), max(found, key=found.__getitem__), iter(lines)


def steps(bench: Bench, cached_size: int, online_size: int) -> Iterator[str]:
    """The table of all kinds of steps."""
    plan = bench.plan
    one, several = bench.cached(cached_size), bench.cached(cached_size, DRAWS)
    online = bench.online(online_size)
    sides: dict[str, Callable[[], float]] = {
        "from the cache, `--noise-draws 1`": lambda: cached_rate(one),
        f"from the cache, `--noise-draws {DRAWS}`": lambda: cached_rate(several),
        "with the encoders, pixels in memory": lambda: online_rate(online, online_size, 2),
        "with the encoders, from picture files": lambda: online_rate(online, online_size, 2, from_files=True),
    }
    names = [*sides]
    work = dict(zip(names, [cached_work(plan, one), cached_work(plan, several)]))
    work |= dict.fromkeys(names[2:], models.online_flops(plan.chosen))
    sides["matrix products"] = lambda: matrix_rate("cpu", torch.float32, plan.matrix_side)
    seen: dict[str, list[float]] = {name: [] for name in sides}
    online.update(0, online_size)  # a warm-up
    for number in range(bench.rounds):
        for name in [*sides][number % len(sides) :] + [*sides][: number % len(sides)]:
            _say(f"round {number + 1} of {bench.rounds}: {name}")
            seen[name].append(sides[name]())
    peak = median(seen["matrix products"])
    yield f"matrix products in one thread: {peak / 1e9:.0f} GFLOP/s\n"
    yield "| a step | batch | samples/s | GFLOP a sample | of matrix products | times slower than the first |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name in names:
        rate, size = median(seen[name]), cached_size if "cache" in name else online_size
        times = median(a / b for a, b in zip(seen[names[0]], seen[name]))
        wanted = f" ({_wanted(times, WANTED)})" if name == names[2] else ""
        cells = [str(size), f"{rate:,.1f}", f"{work[name] / 1e9:.3f}", f"{rate * work[name] / peak:.0%}"]
        yield f"| {name} | {' | '.join(cells)} | {times:.2f}x{wanted} |"
    draws = DRAWS * median(b / a for a, b in zip(seen[names[0]], seen[names[1]]))
    yield f"\n{DRAWS} draws: {draws:.2f} times the draws/s of 1 ({_wanted(draws, WANTED_DRAWS)})"


def whole_loop(bench: Bench, batch_size: int) -> Iterator[str]:
    yield "| `train-prior --use-ema` | batch | samples/s | its bare update | of it |"
    yield "|---|---:|---:|---:|---:|"
    for num_draws in (1, DRAWS):
        _say(f"the whole command, {num_draws} draws")
        flags = ("--use-ema", "--noise-draws", num_draws)
        found = loop.compare(bench.cache, bench.repo, batch_size, bench.rounds, *flags)
        whole, bare = (median(values) for values in zip(*found))
        share = median(a / b for a, b in found)
        title = f"`--noise-draws {num_draws}`"
        cells = [title, str(batch_size), f"{whole:,.1f}", f"{bare:,.1f}"]
        yield f"| {' | '.join(cells)} | {share:.3f} ({_wanted(share, WANTED_OF_BARE)}) |"


def peaks(bench: Bench, cached_size: int, online_size: int) -> Iterator[str]:
    yield "| peak memory of a process | batch | MB | without imports |"
    yield "|---|---:|---:|---:|"
    imports = memory.peak("imports")
    given = (bench.folder / "models", bench.folder / "pictures")
    rows = {("with the encoders, pixels in memory", online_size): ("online", *given, online_size)}
    for size in dict.fromkeys((online_size, cached_size)):
        output = bench.folder / f"memory-{size}"
        length = ("--max-train-steps", memory.UPDATES, "--cache", bench.cache, "--output-dir", output)
        flags = (*loop.flags(bench.repo, size, "--use-ema", "--noise-draws", 1), *length)
        rows["`train-prior --use-ema --noise-draws 1`", size] = ("train-prior", *flags)
    for (title, size), words in rows.items():
        _say(f"memory: {title}, batches of {size}")
        held = memory.peak(*words)
        yield f"| {title} | {size} | {held / 1e6:,.0f} | {(held - imports) / 1e6:,.0f} |"


def report(bench: Bench, only: tuple[str, ...]) -> Iterator[str]:
    """Lines, as they are found."""
    yield from proportions(bench.plan)
    if not bench.cache.exists():
        _say("models, pictures, and precompute")
        data.write(bench.folder, bench.plan.chosen, bench.plan.samples, bench.plan.side)
    cached_size, online_size, lines = best_sizes(bench)
    yield from ("", *lines)
    if "steps" in only:
        yield ""
        yield from steps(bench, cached_size, online_size)
    if "loop" in only:
        yield ""
        yield from whole_loop(bench, cached_size)
    if "memory" in only:
        yield ""
        yield from peaks(bench, cached_size, online_size)
    if "draws" in only:
        _say("variance and cost of several draws")
        yield ""
        yield from noise_draws.report(bench.folder / "noise", *bench.plan.noise)


def _wanted(found: float, least: float) -> str:
    return f"{least:g} wanted" + ", **missed**" * (found < least)


def _say(what: str) -> None:
    click.echo(f"… {what}", err=True)


@click.command()
@click.option("--rounds", default=3, show_default=True)
@click.option("--only", type=click.Choice(SECTIONS), multiple=True, default=SECTIONS)
@click.option("--small", is_flag=True, help="The cheapest models: to see that it runs.")
@click.option("--folder", type=click.Path(path_type=Path), help="For the data; kept and used again.")
def main(rounds: int, only: tuple[str, ...], small: bool, folder: Path | None) -> None:
    """Print tables of what was measured."""
    torch.set_num_threads(1)
    place = folder or Path(tempfile.mkdtemp())
    try:
        for line in report(Bench(SMALL if small else FULL, place, rounds), only):
            click.echo(line)
    finally:
        if folder is None:
            shutil.rmtree(place)


if __name__ == "__main__":
    main(prog_name="python -m tests.benchmarks.train_prior")
