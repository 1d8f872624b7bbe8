"""`make bench-train-prior-gpu`: training the published prior on a CUDA GPU, from a cache and with encoders.

    python -m tests.benchmarks.train_prior_gpu [--minutes M] [--batch-sizes N,N…] [--variant FLAGS]…

All weights are random. Encoders are drawn on the GPU in half precision and never saved; the prior (4 GB, in
memory where /dev/shm has room) is what the command reads; the rows of the cache are random, its captions of
20 tokens on average. Both sides train in bf16 autocast. Each line is printed when it is found:

    what bounds it         matrix products of this GPU
    a step from the cache  on batches that lie on the GPU, by batch size
    a step with encoders   on pixels and tokens that lie on the GPU, by batch size
    the recipe             15,000 updates of 4 samples, extrapolated from a measured stretch, for 1,221
                           samples; to the cached side's time that of encoding them is added
    the command            `train-prior` as a user runs it, reading from disk; each VARIANT (its flags, as
                           "--compile --compile-mode reduce-overhead" or "--attention xformers") adds a run

`--device cpu --small --precision fp32` runs the same on small models.
"""

import json
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from data_tools import console
from data_tools.errors import UserError

NEEDED = 8 << 30
"Bytes, of weights and data."
SAMPLES, UPDATES, ACCUMULATION = 1221, 15_000, 4
"Of the reference recipe, whose batch size is 1."
WANTED, WANTED_RECIPE, WANTED_SHARE = 10.0, 25.0, 0.5
START_SECONDS = 60.0
"Of a command, until it has written two lines of metrics; none is begun later."
HEADS = "| batch | draws | samples/s | draws/s | TFLOP/s | of matrix products | peak memory |"
RULE = "---:|" * 6


@dataclass(frozen=True)
class Plan:
    bench: Any
    sizes: tuple[int, ...]
    variants: tuple[str, ...]
    ends: float
    "When no more is begun, in `perf_counter`'s seconds."


def report(plan: Plan, found: dict[str, Any]) -> Iterator[str]:
    """Lines, as they are found; all numbers go into `found`."""
    import torch

    from tests.benchmarks.precompute_floor import matrix_rate
    from tests.benchmarks.train_prior_gpu_measure import DTYPES, release

    bench, cuda = plan.bench, plan.bench.device.type == "cuda"
    with torch.inference_mode():
        peak = matrix_rate(str(bench.device), DTYPES[bench.precision], 8192 if cuda else 256)
    name = torch.cuda.get_device_name(bench.device) if cuda else "cpu"
    found |= {"device": name, "precision": bench.precision, "matrix_flops": peak}
    yield f"{name}, {bench.precision}: matrix products {peak / 1e12:,.1f} TFLOP/s"
    yield from _cached(plan, found)
    release(bench.device)
    yield from _online(plan, found)
    release(bench.device)
    yield from _best(plan, found)
    yield from _commands(plan, found)
    yield from _recipe(found)


def _cached(plan: Plan, found: dict[str, Any]) -> Iterator[str]:
    from tests.benchmarks.train_prior_gpu_measure import SEVERAL, cached_update

    bench, rows = plan.bench, found.setdefault("cached", {})
    side = bench.cached()
    yield from ("", f"| a step from the cache {HEADS}", f"|---|{RULE}---:|")
    kinds = [(size, 1, 1) for size in plan.sizes]
    kinds += [(1, ACCUMULATION, 1), (ACCUMULATION, 1, 1)]
    kinds += [(size, 1, SEVERAL) for size in plan.sizes[-2:]]
    for batch_size, num_rounds, num_draws in dict.fromkeys(kinds):
        made = cached_update(bench, side, batch_size, num_rounds, num_draws)
        rows[f"{batch_size}x{num_rounds}, {num_draws}"] = made and asdict(made)
        yield _row("rows on the GPU", batch_size, num_rounds, num_draws, made, found["matrix_flops"])


def _online(plan: Plan, found: dict[str, Any]) -> Iterator[str]:
    from tests.benchmarks.train_prior_gpu_measure import decode_seconds, encoder_rates, online_update

    bench, rows, peak = plan.bench, found.setdefault("online", {}), found["matrix_flops"]
    side = bench.online(plan.sizes[-1])
    yield from ("", f"| a step with encoders {HEADS}", f"|---|{RULE}---:|")
    for batch_size, num_rounds in dict.fromkeys([*((size, 1) for size in plan.sizes), (1, ACCUMULATION)]):
        made = online_update(bench, side, batch_size, num_rounds)
        rows[f"{batch_size}x{num_rounds}"] = made and asdict(made)
        yield _row("pixels on the GPU", batch_size, num_rounds, 1, made, peak)
    made = online_update(bench, side, 1, ACCUMULATION, from_files=True)
    rows["files"] = made and asdict(made)
    yield _row("picture files", 1, ACCUMULATION, 1, made, peak)
    found["encoders"] = encoder_rates(bench, side, min(32, plan.sizes[-1]))
    found["decode_seconds"] = decode_seconds(side)
    encoders = ", ".join(f"{name} {rate:,.0f}/s" for name, rate in found["encoders"].items())
    decoding = f"decoding a picture in one thread {found['decode_seconds'] * 1e3:.1f} ms"
    yield f"\nfrozen encoders alone: {encoders}; {decoding}"


def _row(title: str, batch_size: int, num_rounds: int, num_draws: int, made: Any, peak: float) -> str:
    size = f"{batch_size}" if num_rounds == 1 else f"{batch_size} × {num_rounds}"
    if made is None:
        return f"| {title} | {size} | {num_draws} | does not fit | | | | |"
    cells = [f"{made.rate:,.1f}", f"{made.rate * num_draws:,.1f}", f"{made.flops / 1e12:,.2f}"]
    cells += [f"{made.flops / peak:.0%}", f"{made.peak_bytes / 1e9:.1f} GB"]
    return f"| {title} | {size} | {num_draws} | {' | '.join(cells)} |"


def _best(plan: Plan, found: dict[str, Any]) -> Iterator[str]:
    """Each side at its best batch size."""
    cached = {size: found["cached"][f"{size}x1, 1"] for size in plan.sizes}
    online = {size: found["online"][f"{size}x1"] for size in plan.sizes}
    best = [max((_rate(made), size) for size, made in side.items()) for side in (cached, online)]
    (rate, size), (other, other_size) = best
    share = (cached[size] or {"flops": 0.0})["flops"] / found["matrix_flops"]
    found |= {"best": size, "best_online": other_size, "times": rate / other, "share": share}
    faster = f"{rate / other:.1f} times the samples/s ({_wanted(rate / other, WANTED)})"
    bound = f"{share:.0%} of matrix products ({_wanted(share, WANTED_SHARE)})"
    yield f"\nat the best batch sizes, {size} and {other_size}: {faster}, {bound}"


def _rate(made: dict[str, float] | None) -> float:
    return made["samples"] / made["seconds"] if made else 0.0


def _commands(plan: Plan, found: dict[str, Any]) -> Iterator[str]:
    from tests.benchmarks.train_prior_gpu_measure import command_rate
    from tests.benchmarks.train_prior_loop import flags

    rows, epoch = found.setdefault("command", {}), len(plan.bench.captions)
    yield "\n| the command | batch | samples/s | of its bare step | of matrix products | of online's best |"
    yield "|---|---:|---:|---:|---:|---:|"
    for variant in ("", *plan.variants):
        for batch_size in dict.fromkeys((ACCUMULATION, found["best"])):
            bare = found["cached"][f"{batch_size}x1, 1"]
            # of a compiled one the first epoch, in which it meets all shapes, is the first line
            updates = max(epoch // batch_size if variant else 1, round(plan.bench.seconds / bare["seconds"]))
            given = flags(plan.bench.repo, batch_size, "--noise-draws", 1, *shlex.split(variant))
            rate: float | str = "no time left"
            if time.perf_counter() < plan.ends - START_SECONDS:
                rate = command_rate(plan.bench, given, updates, lines=2, ends=plan.ends)
            rows[f"{batch_size} {variant}".strip()] = rate
            title, cells = f"train-prior {variant}".strip(), _command_cells(rate, bare, found)
            yield f"| `{title}` | {batch_size} | {cells} |"


def _command_cells(rate: float | str, bare: dict[str, float], found: dict[str, Any]) -> str:
    if isinstance(rate, str):
        return f"{rate} | | | "
    of_bare, best = rate / _rate(bare), found["online"][f"{found['best_online']}x1"]
    share = of_bare * bare["flops"] / found["matrix_flops"]
    return f"{rate:,.1f} | {of_bare:.2f} | {share:.0%} | {rate / _rate(best):.1f}x"


def _recipe(found: dict[str, Any]) -> Iterator[str]:
    samples = ACCUMULATION
    precompute = sum(SAMPLES / rate for rate in found["encoders"].values())
    reference = {
        "the reference, pixels on the GPU": found["online"][f"1x{samples}"],
        "the reference, picture files, no workers": found["online"]["files"],
    }
    ways = {title: made["seconds"] for title, made in reference.items() if made}
    cached = {
        f"from the cache, batch 1 × {samples}": found["cached"][f"1x{samples}, 1"],
        f"from the cache, batch {samples}: the same update at once": found["cached"][f"{samples}x1, 1"],
    }
    ways |= {title: made["seconds"] for title, made in cached.items() if made}
    for name, rate in found["command"].items():
        size, _, variant = name.partition(" ")
        if not isinstance(rate, str) and size == str(samples):
            ways[f"`{f'train-prior {variant}'.strip()}`, batch {samples}"] = samples / rate
    yield f"\n| {UPDATES:,} updates of {samples} | ms an update | minutes | precompute | times faster |"
    yield "|---|---:|---:|---:|---:|"
    totals = found.setdefault("recipe", {})
    for title, each in ways.items():
        encoding = 0.0 if title in reference else precompute
        totals[title] = UPDATES * each + encoding
        times = [totals[name] / totals[title] for name in reference if name in totals]
        shown = "" if title in reference else " and ".join(f"{value:.1f}x" for value in times)
        cells = [f"{each * 1e3:,.1f}", f"{totals[title] / 60:,.1f}", f"{encoding:.0f} s", shown]
        yield f"| {title} | {' | '.join(cells)} |"
    ours = [seconds for title, seconds in totals.items() if title not in reference]
    theirs = [seconds for title, seconds in totals.items() if title in reference]
    if ours and theirs:
        found["recipe_times"] = max(theirs) / min(ours)
        best = f"{found['recipe_times']:.1f}x ({_wanted(found['recipe_times'], WANTED_RECIPE)})"
        yield f"\nthe recipe, the fastest of ours against the reference as it is: {best}"


def _wanted(value: float, least: float) -> str:
    return f"{least:g} wanted" + ", **missed**" * (value < least)


def _roomy() -> str | None:
    """A folder in memory, if there is one with room."""
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > NEEDED else None


@click.command(name="bench-train-prior-gpu", context_settings=console.CONTEXT)
@click.option("--device", default="cuda", show_default=True)
@click.option("--precision", type=click.Choice(["bf16", "fp32"]), default="bf16", show_default=True)
@click.option("--batch-sizes", default="1,4,16,64,128,256", show_default=True, metavar="N,N…")
@click.option("--samples", default=SAMPLES, show_default=True, help="In the cache.")
@click.option("--seconds", default=2.0, show_default=True, help="Of each measurement, about.")
@click.option("--minutes", default=8.0, show_default=True, help="When no more commands are begun.")
@click.option("--variant", "variants", multiple=True, metavar="FLAGS", help="More flags of train-prior.")
@click.option("--small", is_flag=True, help="Models for a machine without a GPU.")
@click.option("--json", "as_json", type=click.Path(path_type=Path), help="Also write all numbers there.")
@click.option("--folder", type=click.Path(path_type=Path), help="For weights and data; deleted afterwards.")
def main(
    device: str,
    precision: str,
    batch_sizes: str,
    samples: int,
    seconds: float,
    minutes: float,
    variants: tuple[str, ...],
    small: bool,
    as_json: Path | None,
    folder: Path | None,
) -> None:
    """Print what training the prior costs on this GPU, from a cache and with the encoders."""
    started = time.perf_counter()
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device: {device}: there is no CUDA GPU; to try the script: --device cpu --small")
    from tests.benchmarks import precompute_data as data
    from tests.benchmarks import train_prior_models as models
    from tests.benchmarks.train_prior_gpu_measure import Bench

    place = Path(tempfile.mkdtemp(dir=folder or _roomy()))
    sizes = tuple(sorted(int(size) for size in batch_sizes.split(",")))
    chosen = models.TINY if small else models.PUBLISHED
    captions = tuple(data.captions(samples))
    bench = Bench(place, chosen, torch.device(device), precision, captions, seconds)
    found: dict[str, Any] = {}
    try:
        bench.write(side=128 if small else 1024)
        for line in report(Plan(bench, sizes, variants, started + 60 * minutes), found):
            click.echo(line)
    finally:
        shutil.rmtree(place)
        if as_json is not None:
            as_json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    console.run(main)
