"""The reference's training of the prior, online: encoders in the loop, the stock model, torch's optimizer.

The recipe is `reference/kandinsky-2-2.md` §1.4, a micro-batch of which is `tests.online.online_prior_loss`.
From `train` come the meaning of the flags (`TrainOptions`), the order of the samples and the draws, which a
comparison needs to be the same, and the random start of a LoRA. Runs that see the same samples in each step
share one pass of the vision model.

Legend: G samples of an optimizer step, K draws of each, D embedding width.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from peft import LoraConfig
from torch import Tensor, nn

from data_tools import images
from data_tools.cache.mixture import Reader
from tests.online import OnlineModels, online_prior_loss
from tests.train.runs import prepared
from tests.train.test_equivalence import table
from train.batches import Slice, TrainingBatches
from train.draws import Draws, draw
from train.options import TrainOptions
from train.reading import ordering

CPU = torch.device("cpu")
LORA_LAYERS = ["to_q", "to_k", "to_v", "to_out.0"]


@dataclass(frozen=True)
class Samples:
    """What one optimizer step sees, in the order of the global batch."""

    pixel_values: Tensor
    "(G, 3, H, W), from the image processor."
    captions: list[str]


@dataclass(frozen=True)
class OnlineRun:
    """A run that is under way, and the losses of its steps so far."""

    options: TrainOptions
    models: OnlineModels
    trained: dict[str, nn.Parameter]
    "By the name in the exported file."
    start: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    losses: list[float] = field(default_factory=list)

    @classmethod
    def begin(cls, models: OnlineModels, options: TrainOptions, lora: dict[str, nn.Parameter]) -> "OnlineRun":
        """Full fine-tuning of the prior in `models`, or of a LoRA on it that begins as `lora` is now."""
        prior: Any = models.prior
        if lora:
            prior.add_adapter(
                LoraConfig(r=options.lora_rank, lora_alpha=options.lora_alpha, target_modules=LORA_LAYERS)
            )
        named = prior.named_parameters()
        trained = {name.replace(".default.", "."): p for name, p in named if p.requires_grad}
        assert not lora or trained.keys() == lora.keys()
        with torch.no_grad():
            for name, values in lora.items():
                trained[name].copy_(values)
        bare = {name for name, p in trained.items() if p.ndim < 2 or name.endswith("_embedding")}
        decays = {True: options.adam_weight_decay, False: 0.0}
        groups = [
            {
                "params": [p for name, p in trained.items() if (name not in bare) is decayed],
                "weight_decay": decay,
            }
            for decayed, decay in decays.items()
        ]
        optimizer = torch.optim.AdamW(
            groups,
            lr=options.learning_rate,
            betas=(options.adam_beta1, options.adam_beta2),
            eps=options.adam_epsilon,
        )
        schedule = get_scheduler(
            options.lr_scheduler,
            optimizer,
            num_warmup_steps=options.lr_warmup_steps,
            num_training_steps=options.max_train_steps,
        )
        start = {name: p.detach().clone() for name, p in trained.items()}
        return cls(options, models, trained, start, optimizer, schedule)

    def update(self, samples: Samples, image_embeds: Tensor) -> None:
        """One optimizer step. image_embeds (G, D) are what the vision model makes of the pixels."""
        options, loss = self.options, 0.0
        for start in range(0, len(samples.captions), options.train_batch_size):
            places = slice(start, start + options.train_batch_size)
            losses = self._losses(samples, image_embeds, places)
            part = losses.mean() / options.gradient_accumulation_steps
            part.backward()
            loss += part.item()
        nn.utils.clip_grad_norm_(self.trained.values(), options.max_grad_norm)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        self.losses.append(loss)

    def _losses(self, samples: Samples, image_embeds: Tensor, places: slice) -> Tensor:
        """Of the samples at some places of the batch: a pass for each of the K draws."""
        options, num_draws = self.options, self.options.noise_draws
        draws = draw(
            options.seed,
            len(self.losses),
            torch.arange(places.start, places.stop),
            shape=tuple(image_embeds.shape[1:]),
            num_train_timesteps=len(self.models.prior_scheduler.betas),
            cond_dropout=options.cond_dropout,
            num_draws=num_draws,
        )
        encoded = SimpleNamespace(image_embeds=image_embeds[places])
        models = replace(self.models, image_encoder=lambda _: encoded)  # it ran for all runs at once
        passes = []
        for k in range(num_draws):
            one = Draws(draws.noise[k::num_draws], draws.timesteps[k::num_draws], draws.drop)
            pixel_values, captions = samples.pixel_values[places], samples.captions[places]
            passes.append(online_prior_loss(models, pixel_values, captions, one, snr_gamma=options.snr_gamma))
        return torch.cat(passes)


def samples_of_steps(
    reader: Reader, options: TrainOptions, cache: Path, pictures: Path, processor: Any
) -> Iterator[Samples]:
    """The pictures and captions of each optimizer step in the trainer's order, from the files themselves."""
    share = Slice(0, 1, options.train_batch_size, options.gradient_accumulation_steps)
    held = reader.held_out(options.validation_fraction)
    batches = TrainingBatches(reader, held, share, options.seed, CPU, ordering=ordering(options, share))
    entries, sampling = table(cache), batches.sampling
    pixels: dict[int, Tensor] = {}
    for step in range(options.total_steps(sampling.samples_per_epoch, world_size=1)):
        drawn = sampling.order.batch(step)
        samples = sampling.samples(drawn)
        keys = reader.key_hashes(samples).tolist()
        numbers = sampling.shown("text", samples, drawn.epoch) - reader.rows("text", samples)[0]
        for key in set(keys) - pixels.keys():
            picture = images.decode((pictures / entries[key]["place"]).read_bytes())
            pixels[key] = processor(images=[picture], return_tensors="pt").pixel_values[0]
        captions = [entries[key]["captions"][number] for key, number in zip(keys, numbers.tolist())]
        yield Samples(torch.stack([pixels[key] for key in keys]), captions)


def train_online(
    command_lines: list[tuple[str, ...]], cache: Path, pictures: Path, pocket: Path, output: Path
) -> list[OnlineRun]:
    """What `train-prior` does with each of these command lines, online; all must see the same samples."""
    runs = []
    for flags in command_lines:
        task, reader, options = prepared("prior", cache, output, *flags)
        models = OnlineModels.load(pocket / "prior", pocket / "decoder")
        runs.append(OnlineRun.begin(models, options, task.adapter.parameters() if task.adapter else {}))
    for samples in samples_of_steps(reader, options, cache, pictures, models.image_processor):
        with torch.no_grad():
            image_embeds = models.image_encoder(samples.pixel_values).image_embeds  # (G, D)
        for run in runs:
            run.update(samples, image_embeds)
    return runs
