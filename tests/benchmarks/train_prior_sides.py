"""The two sides of `bench-train-prior`: an update of `train-prior`, and the reference's with its encoders.

Both train the same prior with AdamW and clipped gradients. `Cached` is made of the trainer's own pieces,
without its loop; `Online` is `tests.online`, from pixels that are preloaded or from picture files. Under bf16
only the prior's forward pass is in autocast, as accelerate has it; the encoders' weights are bfloat16.

Legend: B samples in a micro-batch, P pictures, D embedding width.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from diffusers import DDPMScheduler, PriorTransformer
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTokenizer
from transformers.tokenization_utils_base import BatchEncoding

from data_tools.cache.mixture import Reader
from tests.benchmarks.train_prior_models import ModelSet, cached_flops
from tests.online import OnlineModels, online_prior_loss
from tests.train import runs
from train.batches import Batch, Slice, TrainingBatches, null_conditions
from train.draws import Draws, draw
from train.optimizer import make_optimizer
from train.options import TrainOptions
from train.reading import ordering
from train.task import Loss, Task

MAX_GRAD_NORM = 1.0
COND_DROPOUT = 0.1
NUM_TRAIN_TIMESTEPS = 1000
Round = tuple[Batch, Tensor]
"A micro-batch and its positions in the global batch."


def autocast_forward(module: nn.Module, device: torch.device, precision: str) -> None:
    """As `accelerator.prepare` does it."""
    if precision == "bf16":
        forward: Any = module.forward
        module.forward = torch.autocast(device.type, torch.bfloat16)(forward)


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(device: torch.device, update: Callable[[int], None], steps: Iterable[int]) -> float:
    """Of some updates, one after the other."""
    finish(device)
    started = time.perf_counter()
    for step in steps:
        update(step)
    finish(device)
    return time.perf_counter() - started


@dataclass(frozen=True)
class Cached:
    """`train-prior` without its loop."""

    task: Task
    reader: Reader
    options: TrainOptions
    device: torch.device
    batches: TrainingBatches
    null: Batch
    loss: Loss
    optimizer: torch.optim.Optimizer
    parameters: list[nn.Parameter]

    @classmethod
    def open(
        cls, cache: Path, repo: Path, *flags: object, device: str = "cpu", precision: str = "fp32"
    ) -> "Cached":
        """With flags of `train-prior`."""
        unused = cache.with_name("no-output")
        task, reader, options = runs.prepared(
            "prior", cache, unused, "--prior-model", str(repo), *map(str, flags)
        )
        place = torch.device(device)
        task.module.to(place).train()
        optimizer, named = make_optimizer(task.module, options)
        autocast_forward(task.module, place, precision)
        return cls(
            task,
            reader,
            options,
            place,
            _batches(reader, options, place),
            null_conditions(reader, "text", place),
            task.make_loss(place),
            optimizer,
            [parameter for _, parameter in named],
        )

    def with_batches(self, batch_size: int, num_rounds: int, num_draws: int) -> "Cached":
        """The same model and optimizer."""
        options = replace(
            self.options,
            train_batch_size=batch_size,
            gradient_accumulation_steps=num_rounds,
            noise_draws=num_draws,
        )
        return replace(self, options=options, batches=_batches(self.reader, options, self.device))

    @property
    def updates_an_epoch(self) -> int:
        return self.reader.num_samples // self.batches.share.global_batch_size

    def read(self, step: int) -> list[Round]:
        """The micro-batches of an update, from disk."""
        share = self.batches.share
        return [
            (self.batches.read(step, number), torch.tensor(share.positions(number), device=self.device))
            for number in range(share.num_rounds)
        ]

    def preload(self, first: int, last: int) -> list[list[Round]]:
        """Those of some updates, on the device."""
        rounds = list(self.batches.iterate(first, last))
        count = self.batches.share.num_rounds
        return [rounds[start : start + count] for start in range(0, len(rounds), count)]

    def update(self, step: int, rounds: Sequence[Round]) -> None:
        for batch, positions in rounds:
            losses = self.loss(self.task.module, batch, self.null, self._draws(step, positions))  # (B,)
            (losses.mean() / len(rounds)).backward()
        _optimize(self.optimizer, self.parameters)

    def work(self, chosen: ModelSet, rounds: Sequence[Round]) -> float:
        """FLOPs of a sample in an update, mean; of pads too, they are computed."""
        rows = [batch["text_encoder_hidden_states"].shape[1] for batch, _ in rounds]
        return mean(cached_flops(chosen, count, self.options.noise_draws) for count in rows)

    def _draws(self, step: int, positions: Tensor) -> Draws:
        return draw(
            self.options.seed,
            step,
            positions,
            shape=tuple(self.reader.columns["image"].fields[0].item_shape),
            num_train_timesteps=self.task.num_train_timesteps,
            cond_dropout=self.options.cond_dropout,
            num_draws=self.options.noise_draws,
            timestep_sampling=self.options.timestep_sampling,
            global_batch_size=self.batches.share.global_batch_size,
        )


def _batches(reader: Reader, options: TrainOptions, device: torch.device) -> TrainingBatches:
    share = Slice(0, 1, options.train_batch_size, options.gradient_accumulation_steps)
    order = ordering(options, share)
    return TrainingBatches(reader, reader.held_out(0.0), share, options.seed, device, ordering=order)


class Tokenized:
    """Stands for the tokenizer: captions are looked up, their tokens lie on the device already."""

    def __init__(self, tokenizer: CLIPTokenizer, captions: Sequence[str], device: torch.device) -> None:
        known = ["", *captions]  # the empty one is of dropped conditions
        self._row = {caption: number for number, caption in enumerate(known)}
        encoded = tokenizer(known, padding="max_length", truncation=True, return_tensors="pt")
        self._encoded = {name: encoded[name].to(device) for name in ("input_ids", "attention_mask")}

    def __call__(self, captions: Sequence[str], **_: object) -> BatchEncoding:
        rows = [self._row[caption] for caption in captions]
        return BatchEncoding({name: value[rows] for name, value in self._encoded.items()})


@dataclass(frozen=True)
class Online:
    """The reference's update, with the encoders in it."""

    models: OnlineModels
    processor: Any
    captions: Sequence[str]
    pictures: Sequence[Path]
    "A file for each caption."
    pixels: Tensor
    "(P, 3, H, W) of the first pictures, on the device, in the encoder's dtype."
    optimizer: torch.optim.Optimizer

    @classmethod
    def of(
        cls,
        prior: PriorTransformer,
        vision: nn.Module,
        text: nn.Module,
        tokenizer: CLIPTokenizer,
        processor: Any,
        captions: Sequence[str],
        pictures: Sequence[Path],
        *,
        num_preloaded: int,
        precision: str = "fp32",
    ) -> "Online":
        """Of models on their device."""
        device, like = prior.device, next(vision.parameters())
        autocast_forward(prior, device, precision)
        for encoder in (vision, text):
            encoder.eval().requires_grad_(False)
        side = vision.config.image_size
        pixels = torch.randn(num_preloaded, 3, side, side, device=device, dtype=like.dtype)
        unused: Any = None  # the decoder's
        models = OnlineModels(
            tokenizer=Tokenized(tokenizer, captions, device),
            text_encoder=text,
            image_encoder=vision,
            image_processor=processor,
            prior=prior.train(),
            prior_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"),
            movq=unused,
            unet=unused,
            decoder_scheduler=unused,
        )
        return cls(
            models, processor, captions, pictures, pixels, torch.optim.AdamW(prior.parameters(), lr=1e-4)
        )

    @property
    def device(self) -> torch.device:
        return self.pixels.device

    def update(self, step: int, batch_size: int, num_rounds: int = 1, *, from_files: bool = False) -> None:
        for number in range(num_rounds):
            first = (step * num_rounds + number) * batch_size
            chosen = [(first + i) % len(self.captions) for i in range(batch_size)]
            if from_files:
                pixels = self.decoded(chosen)  # (B, 3, H, W)
            else:
                start = first % (len(self.pixels) - batch_size + 1)
                pixels = self.pixels[start : start + batch_size]
            captions = [self.captions[i] for i in chosen]
            losses = online_prior_loss(self.models, pixels, captions, self._draws(batch_size))
            (losses.mean() / num_rounds).backward()
        _optimize(self.optimizer, list(self.models.prior.parameters()))

    def decoded(self, chosen: Sequence[int]) -> Tensor:
        """The reference's preprocessing: (B, 3, H, W)."""
        images = [Image.open(self.pictures[i]).convert("RGB") for i in chosen]
        return self.processor(images=images, return_tensors="pt").pixel_values.to(self.pixels)

    def _draws(self, batch_size: int) -> Draws:
        """As the reference draws them, and dropped conditions on the host, where captions are."""
        dim, device = self.models.prior.config["embedding_dim"], self.device
        noise = torch.randn(batch_size, dim, device=device)
        timesteps = torch.randint(0, NUM_TRAIN_TIMESTEPS, (batch_size,), device=device)
        return Draws(noise, timesteps, torch.rand(batch_size) < COND_DROPOUT)


def _optimize(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
