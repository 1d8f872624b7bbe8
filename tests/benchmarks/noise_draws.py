"""Part of `make bench-train-prior`: what several draws of (timestep, noise) for each caption cost and bring.

    python -m tests.benchmarks.noise_draws [--steps N] [--batches N] [--folder DIR]

On the CPU: a small prior is trained a little on the demo pictures, from a cache and in the batches of
`train-prior`; then its weights stay as they are, and the gradients of many steps are compared.

    variance    of the gradient of a step, between steps with other captions and other draws, mean over the
                parameters
    split       the same with one draw: from which captions are in the batch (and which of them are dropped),
                and from (t, noise), by an analysis of variance of several draws for the same batch
    cost        seconds of draws, forward and backward pass
    product     variance times cost, relative to the reference (one uniform draw): the time that a gradient
                as exact as the reference's takes
"""

import json
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev

import click
import torch
from diffusers import PriorTransformer
from torch import Tensor

from data_tools import models
from data_tools.cache.reader import CacheReader
from data_tools.demo import write_demo_data
from tests.benchmarks import precompute_command as command
from tests.pocket import build_pocket
from train.batches import Batch, Slice, TrainingBatches, null_conditions
from train.diffusion import from_scheduler_config
from train.draws import Draws, TimestepSampling, draw
from train.objectives import prior_loss
from train.options import LENGTH_WINDOW
from train.prior_model import CausalPrior
from train.sampling import Ordering

CPU = torch.device("cpu")
SAMPLES, BATCH_SIZE = 480, 16
COND_DROPOUT = 0.1
REPEATS = 4
"Draws of the same batch in the analysis of variance."
COUNTS = (1, 2, 4, 8)
WANTED_RATE = 2.5
"Times the draws/s of one draw, for four."
FIRST_MEASURED = 1 << 20
"Steps of which no draws were trained on."
HEADS = ("timesteps", "draws", "variance", "relative", "s/step", "cost", "draws/s", "variance × cost")

Side = tuple[TimestepSampling, int]
"Timestep sampling, and draws a sample."
REFERENCE: Side = ("uniform", 1)


@dataclass(frozen=True)
class Bench:
    """A small prior and the batches it is trained with."""

    prior: PriorTransformer
    module: CausalPrior
    batches: TrainingBatches
    null: Batch
    loss: "partial[Tensor]"
    num_train_timesteps: int

    @classmethod
    def open(cls, folder: Path) -> "Bench":
        reader = CacheReader(folder / "cache", ["image", "text"])
        pocket = PriorTransformer.from_pretrained(folder / "models" / "prior", subfolder="prior")
        prior = _small_prior(pocket)
        schedule = from_scheduler_config(models.config(folder / "models" / "prior" / "scheduler", flag=""))
        everyone = Slice(0, 1, BATCH_SIZE, 1)
        ordering = Ordering(group=LENGTH_WINDOW)
        clip = {"clip_mean": prior.clip_mean, "clip_std": prior.clip_std}
        return cls(
            prior,
            CausalPrior(prior),
            TrainingBatches(reader, reader.held_out(0.0), everyone, 0, CPU, ordering=ordering),
            null_conditions(reader, "text", CPU),
            partial(prior_loss, schedule=schedule, **clip, snr_gamma=None),
            schedule.num_train_timesteps,
        )

    def draws(self, step: int, count: int, sampling: TimestepSampling = "uniform") -> Draws:
        return draw(
            0,
            step,
            torch.arange(BATCH_SIZE),
            shape=(self.prior.config["embedding_dim"],),
            num_train_timesteps=self.num_train_timesteps,
            cond_dropout=COND_DROPOUT,
            num_draws=count,
            timestep_sampling=sampling,
            global_batch_size=BATCH_SIZE,
        )

    def backward(self, batch: Batch, draws: Draws) -> Tensor:
        """A step's loss, a number; the gradients lie where an optimizer finds them."""
        self.module.zero_grad(set_to_none=True)
        loss = self.loss(self.module, batch, self.null, draws).mean()
        loss.backward()
        return loss.detach()

    def gradient(self) -> Tensor:
        """All parameters' in one row: (P,)."""
        return torch.cat([p.grad.flatten() for p in self.module.parameters() if p.grad is not None])

    def steps(self, first: int, count: int) -> Iterator[tuple[int, Batch]]:
        for step in range(first, first + count):
            yield step, self.batches.read(step, 0)


def _small_prior(pocket: PriorTransformer) -> PriorTransformer:
    """Reads what the pocket prior reads, with blocks wide enough to spend their time in products."""
    torch.manual_seed(0)
    config = {key: pocket.config[key] for key in ("embedding_dim", "num_embeddings", "additional_embeddings")}
    prior = PriorTransformer(num_attention_heads=3, attention_head_dim=64, num_layers=4, **config)
    with torch.no_grad():
        prior.positional_embedding.normal_(std=0.1)
        prior.prd_embedding.normal_(std=0.1)
        prior.clip_mean.copy_(pocket.clip_mean)
        prior.clip_std.copy_(pocket.clip_std)
    return prior.train()


@dataclass(frozen=True)
class Measured:
    variance: float
    "Of a step's gradient."
    error: float
    "Its standard error, as a share of it."
    seconds: float
    "Of a step, median."
    cost: float
    "Seconds against those of the reference on the same batch, median."


@dataclass
class Spread:
    """Running mean and variance of gradients."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: list[float] = field(default_factory=list)
    "Of each gradient, mean over the parameters."

    def add(self, gradient: Tensor) -> None:
        self.count += 1
        self.total = self.total + gradient
        self.squares.append(float(gradient.square().mean()))

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def variance(self) -> float:
        """Of one gradient, mean over the parameters."""
        mean_square = float(self.mean.square().mean())
        return (sum(self.squares) - self.count * mean_square) / (self.count - 1)

    @property
    def error(self) -> float:
        """Standard error of the variance, as a share of it."""
        return stdev(self.squares) / math.sqrt(self.count) / mean(self.squares)


def train(bench: Bench, count: int) -> list[float]:
    """Steps of one uniform draw, as the reference has them. Returns the losses."""
    optimizer = torch.optim.AdamW(bench.module.parameters(), lr=3e-4, weight_decay=0.0)
    losses = []
    for step, batch in bench.steps(0, count):
        losses.append(float(bench.backward(batch, bench.draws(step, 1))))
        optimizer.step()
    return losses


def split(bench: Bench, count: int) -> tuple[float, float]:
    """Variance of a step with one uniform draw that comes from the captions, and from (t, noise)."""
    means, within = Spread(), 0.0
    for step, batch in bench.steps(FIRST_MEASURED, count):
        several = bench.draws(step, REPEATS)
        spread = Spread()
        for k in range(REPEATS):
            chosen = Draws(several.noise[k::REPEATS], several.timesteps[k::REPEATS], several.drop)
            bench.backward(batch, chosen)
            spread.add(bench.gradient())
        within += spread.variance / count
        means.add(spread.mean)
    return means.variance - within / REPEATS, within


def compare(bench: Bench, count: int) -> dict[Side, Measured]:
    """All sides on the same batches."""
    sides: list[Side] = [("uniform", number) for number in COUNTS]
    sides += [("stratified", number) for number in COUNTS]
    spreads = {side: Spread() for side in sides}
    seconds: dict[Side, list[float]] = {side: [] for side in sides}
    for step, batch in bench.steps(FIRST_MEASURED, count):
        turn = step % len(sides)
        for sampling, number in sides[turn:] + sides[:turn]:  # who goes first takes turns
            started = time.perf_counter()
            bench.backward(batch, bench.draws(step, number, sampling))
            seconds[sampling, number].append(time.perf_counter() - started)
            spreads[sampling, number].add(bench.gradient())
    base = seconds[REFERENCE]
    return {
        side: Measured(
            spreads[side].variance,
            spreads[side].error,
            median(seconds[side]),
            median(own / other for own, other in zip(seconds[side], base)),
        )
        for side in sides
    }


def table(found: dict[Side, Measured]) -> Iterator[str]:
    """Lines of Markdown."""
    base = found[REFERENCE]
    yield f"| {' | '.join(HEADS)} |"
    yield f"|---|{'---:|' * (len(HEADS) - 1)}"
    for (sampling, number), each in found.items():
        variance, rate = each.variance / base.variance, number / each.cost
        cells = [sampling, str(number), f"{each.variance:.2e} ± {each.error:.0%}", f"{variance:.3f}"]
        cells += [f"{each.seconds:.3f}", f"{each.cost:.2f}", f"{rate:.2f}", f"{variance * each.cost:.3f}"]
        yield f"| {' | '.join(cells)} |"


def write(folder: Path) -> None:
    """The demo's pictures, a pocket Kandinsky that knows their words, and the cache of both."""
    write_demo_data(folder / "data", SAMPLES, progress=False)
    rows = map(json.loads, (folder / "data" / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    captions = (row.get("text", []) for row in rows)  # a text, or a list of them
    build_pocket(
        folder / "models", [text for each in captions for text in ([each] if isinstance(each, str) else each)]
    )
    columns = ("image", "text")
    command.run(command.arguments(folder / "data", folder / "models", folder / "cache", columns))


def report(folder: Path, steps: int, batches: int) -> Iterator[str]:
    """Lines; `folder` gets models and cache, or has them. `steps` are trained first, `batches` measured."""
    if not (folder / "cache").exists():
        write(folder)
    bench = Bench.open(folder)
    losses = train(bench, steps)
    last = losses[-50:]
    yield f"{steps} steps of {BATCH_SIZE}: loss {losses[0]:.3f}, mean of the last {mean(last):.3f}"
    captions, noise = split(bench, batches)
    share = noise / (captions + noise)
    yield f"variance of a step's gradient: {share:.0%} from (t, noise), {1 - share:.0%} from the captions\n"
    found = compare(bench, batches)
    yield from table(found)
    rate = 4 / found["uniform", 4].cost
    yield f"\n4 draws: {rate:.2f} times the draws/s of 1 (wanted {WANTED_RATE})"


@click.command()
@click.option("--steps", default=200, show_default=True, help="Trained before anything is measured.")
@click.option("--batches", default=60, show_default=True, help="That are measured.")
@click.option("--folder", type=click.Path(path_type=Path), help="For the data; kept and used again.")
def main(steps: int, batches: int, folder: Path | None) -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as temporary:
        for line in report(folder or Path(temporary), steps, batches):
            click.echo(line)


if __name__ == "__main__":
    main()
