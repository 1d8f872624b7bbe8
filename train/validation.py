"""What is measured on held-out samples, always with the same noise, timesteps and captions.

    validation_loss           mean over samples, timesteps spread evenly over the schedule
    validation_loss_q1 … q4   of the draws with t in [0, T/4), … [3T/4, T)
    sampled_cosine_g1, g4     cosine of the sampled to the true image embedding, with guidance 1 and 4
    clip_score_g1, g4         CLIP score of the sampled embedding with its prompt
    clip_score_true           of the true embedding, for comparison

The CLIP score is 100 · max(cos, 0), as torchmetrics' `CLIPScore` reports it (Hessel et al. 2021, arXiv
2104.08718, has the weight 2.5 for 100). It takes no CLIP here: the sampled embedding stands for a picture's.

Legend: B samples, K draws of each, G guidance scales, D embedding width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from data_tools.cache.mixture import Reader
from train.batches import Batch, Source, to_device
from train.draws import Purpose, draw
from train.options import TrainOptions
from train.sampler import GUIDANCE, make_generators
from train.task import Task

Samples = NDArray[np.int64]

QUARTERS = 4
SCALES = (1.0, GUIDANCE)
"Of guidance."
SAMPLED_BATCH = 32
"Samples at a time, at most."


class Validator:
    """Measures the weights that a module has at the moment.

    `held` are the samples to measure on; of these the first `options.sampled_validation` are sampled. Draws
    depend on the seed and a sample's place in `held`, so neither batch size nor number of ranks matters.
    """

    def __init__(
        self,
        task: Task,
        null: Batch,
        reader: Reader,
        held: Samples,
        options: TrainOptions,
        accelerator: Accelerator,
    ) -> None:
        self.task, self.null, self.reader, self.held = task, null, reader, held
        self.options, self.accelerator = options, accelerator
        self._losses = task.make_draw_losses(accelerator.device)
        self._sampler = None
        if task.make_sampler and options.sampled_validation:
            self._sampler = task.make_sampler(accelerator.device)

    @torch.no_grad()
    def measure(self, source: Source, module: nn.Module) -> dict[str, float]:
        """Metric → value, the same on all ranks, which must all call it; {} without a held-out sample.

        `module` is what a forward is asked of; each rank asks the same number. It must not be DDP's wrapper,
        whose forward waits for the other ranks.
        """
        if not len(self.held):
            return {}
        with evaluating(module):
            return {**self._measure_loss(source, module), **self._measure_sampled(source, module)}

    def _measure_loss(self, source: Source, module: nn.Module) -> dict[str, float]:
        task, T = self.task, self.task.num_train_timesteps
        total = torch.zeros(2, QUARTERS, device=self.accelerator.device)  # sum of losses, number of them
        for places, counts in self._share(list(self._batches())):
            batch = self._read(source, places)
            draws = draw(
                self.options.seed,
                0,
                torch.from_numpy(places).to(self.accelerator.device),
                shape=tuple(batch[task.noised].shape[1:]),
                num_train_timesteps=T,
                cond_dropout=0.0,
                purpose=Purpose.VALIDATION,
                num_draws=task.validation_draws,
                timestep_sampling="stratified",
                global_batch_size=len(self.held),
            )
            losses = self._losses(module, batch, self.null, draws)[:, None]  # (B · K, 1)
            inside = F.one_hot(draws.timesteps * QUARTERS // T, QUARTERS).to(losses)  # (B · K, 4)
            if counts:
                total += torch.stack([(losses * inside).sum(dim=0), inside.sum(dim=0)])
        sums, numbers = self.accelerator.reduce(total, reduction="sum").tolist()
        values = {"validation_loss": sum(sums) / sum(numbers)}
        quarters = enumerate(zip(sums, numbers, strict=True), 1)
        return values | {f"validation_loss_q{q}": loss / number for q, (loss, number) in quarters if number}

    def _measure_sampled(self, source: Source, module: nn.Module) -> dict[str, float]:
        if self._sampler is None:
            return {}
        places = np.arange(min(len(self.held), self.options.sampled_validation))
        size = min(SAMPLED_BATCH, -(-len(places) // self.accelerator.num_processes))
        batches = [places[start : start + size] for start in range(0, len(places), size)]
        total: dict[str, Tensor] = {}
        for chosen, counts in self._share(batches):
            batch = self._read(source, chosen)
            # each scale has generators of its own, of the same seeds: both begin with the same noise
            numbers = np.repeat(chosen, len(SCALES)).tolist()
            generators = make_generators(self.options.seed, numbers, Purpose.SAMPLED_VALIDATION)
            sampled = self._sampler(module, batch, self.null, generators, SCALES)  # (B, G, D)
            found = _comparison(sampled, batch["image_embeds"].float(), batch["prompt_embeds"].float())
            for name, values in found.items():  # (B,)
                total[name] = total.get(name, torch.zeros_like(values.sum())) + values.sum() * counts
        sums = self.accelerator.reduce(torch.stack([*total.values()]), reduction="sum").tolist()
        return {name: value / len(places) for name, value in zip(total, sums, strict=True)}

    def _share(self, batches: Sequence[Samples]) -> Iterator[tuple[Samples, bool]]:
        """This rank's batches, as many on each: at the end some come again, which do not count."""
        world = self.accelerator.num_processes
        for first in range(0, len(batches), world):
            number = first + self.accelerator.process_index
            yield batches[number % len(batches)], number < len(batches)

    def _read(self, source: Source, places: Samples) -> Batch:
        """The samples at some places, each with its first caption and view."""
        samples = self.held[places]
        rows = {column: self.reader.rows(column, samples)[0] for column in self.reader.columns}
        return to_device(source.collate(rows), self.accelerator.device)

    def _batches(self) -> Iterator[Samples]:
        """Places, at most `train_batch_size` of them, all of one bucket, in each batch."""
        bucket, size = np.zeros_like(self.held), self.options.train_batch_size
        for column in self.reader.columns:
            if self.reader.buckets(column):
                bucket = self.reader.bucket_of(column, self.held)[0]
        for which in np.unique(bucket).tolist():
            places = np.flatnonzero(bucket == which)
            for start in range(0, len(places), size):
                yield places[start : start + size]


def as_text(values: dict[str, float]) -> str:
    """The measured values in a line."""
    text = f"validation loss {values['validation_loss']:.4f}"
    if "ema_validation_loss" in values:
        text += f" ({values['ema_validation_loss']:.4f} of the averages)"
    if "sampled_cosine_g1" in values:
        text += (
            f", sampled cosine {values['sampled_cosine_g1']:.3f} ({values['sampled_cosine_g4']:.3f} guided)"
        )
    if "clip_score_true" in values:
        text += f", CLIP score {values['clip_score_g4']:.1f} of {values['clip_score_true']:.1f}"
    return text


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Without dropout; afterwards, come what may, as before."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def _comparison(sampled: Tensor, true: Tensor, prompt: Tensor) -> dict[str, Tensor]:
    """Of each sample: sampled (B, G, D) against true and prompt embeddings (B, D)."""
    by_scale = sampled.unbind(dim=1)  # G × (B, D)
    names = [f"g{scale:.0f}" for scale in SCALES]
    values = {
        f"sampled_cosine_{name}": F.cosine_similarity(embeds, true)  # (B,)
        for name, embeds in zip(names, by_scale, strict=True)
    }
    if prompt.shape == true.shape:  # else they are no points of one space
        for name, embeds in zip([*names, "true"], [*by_scale, true], strict=True):
            values[f"clip_score_{name}"] = 100.0 * F.cosine_similarity(embeds, prompt).clamp(min=0.0)
    return values
