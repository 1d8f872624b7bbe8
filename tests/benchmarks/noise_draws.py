"""A part of `make bench-train-prior`: what several draws of (timestep, noise) for each caption cost and bring.

    python -m tests.benchmarks.noise_draws [--steps N] [--batches N] [--folder DIR]

On the CPU: a small prior is trained a little on the demo pictures, from a cache and in the batches of
`train-prior`; then its weights stay as they are, and the gradients of many steps are compared.

    variance    of the gradient of a step, between steps with other captions and other draws, mean over the
                parameters
    split       the same with one draw: from which captions are in the batch (and which of them are dropped),
                and from (t, noise), by an analysis of variance of several draws for the same batch
    cost        seconds of draws, forward and backward pass
    product     variance times cost, as a share of the reference's (one uniform draw): how much longer than
                this the reference must compute for a gradient as exact
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

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
COLUMNS = ("timesteps", "draws", "variance", "of 1", "s/step", "of 1", "draws/s", "of 1", "product")


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

    def backward(self, batch: Batch, draws: Draws) -> float:
        """Puts the gradients of a step where an optimizer finds them. Returns the loss."""
        self.module.zero_grad(set_to_none=True)
        loss = self.loss(self.module, batch, self.null, draws).mean()
        loss.backward()
        return float(loss)

    def gradient(self, batch: Batch, draws: Draws) -> Tensor:
        """All parameters' in one row, float64: (P,)."""
        self.backward(batch, draws)
        return torch.cat([p.grad.flatten() for p in self.module.parameters() if p.grad is not None]).double()


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


@dataclass
class Spread:
    """Running mean and variance of gradients."""

    count: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, gradient: Tensor) -> None:
        self.count += 1
        self.total = self.total + gradient
        self.squares = self.squares + gradient.square()

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def variance(self) -> float:
        """Of one gradient, mean over the parameters."""
        return float((self.squares - self.count * self.mean.square()).mean()) / (self.count - 1)


def train(bench: Bench, steps: int) -> list[float]:
    """One uniform draw each, as the reference. Returns the losses."""
    optimizer = torch.optim.AdamW(bench.module.parameters(), lr=3e-4, weight_decay=0.0)
    losses = []
    for step, batch in _batches(bench, 0, steps):
        losses.append(bench.backward(batch, bench.draws(step, 1)))
        optimizer.step()
    return losses


def split(bench: Bench, count: int) -> tuple[float, float]:
    """Variance of a step with one uniform draw that comes from the captions, and from (t, noise)."""
    means, within = Spread(), 0.0
    for step, batch in _batches(bench, FIRST_MEASURED, count):
        several = bench.draws(step, REPEATS)
        spread = Spread()
        for k in range(REPEATS):
            chosen = Draws(several.noise[k::REPEATS], several.timesteps[k::REPEATS], several.drop)
            spread.add(bench.gradient(batch, chosen))
        within += spread.variance / count
        means.add(spread.mean)
    return means.variance - within / REPEATS, within


def compare(bench: Bench, count: int) -> dict[tuple[TimestepSampling, int], tuple[float, float]]:
    """(timestep sampling, draws) → variance and seconds of a step, all of them on the same batches."""
    sides: list[tuple[TimestepSampling, int]] = [("uniform", k) for k in COUNTS]
    sides += [("stratified", k) for k in COUNTS]
    spreads = {side: Spread() for side in sides}
    seconds: dict[tuple[TimestepSampling, int], list[float]] = {side: [] for side in sides}
    for step, batch in _batches(bench, FIRST_MEASURED, count):
        turn = step % len(sides)
        for side in sides[turn:] + sides[:turn]:  # who goes first takes turns
            sampling, num_draws = side
            started = time.perf_counter()
            bench.backward(batch, bench.draws(step, num_draws, sampling))
            seconds[side].append(time.perf_counter() - started)
            spreads[side].add(_gradients(bench))
    return {side: (spreads[side].variance, median(seconds[side])) for side in sides}
