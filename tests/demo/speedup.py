"""A training step from the cache against the same step with the encoders in it, on the same machine.

Both sides train the same model with the same optimizer on batches of the same size and begin where a
training step begins: the cached one at the records on disk, the online one at the picture files and captions.
The online side is `tests.online`, the reference recipe (texts padded to 77, every encoder in every step).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data_tools import images, models
from data_tools.cache.reader import CacheReader
from data_tools.sources import ImageFolder, Sample
from tests.online import OnlineModels, movq_pixels, online_decoder_loss, online_prior_loss
from train.batches import Slice, TrainingBatches, null_conditions
from train.diffusion import from_scheduler_config
from train.draws import Draws, draw
from train.objectives import decoder_loss, prior_loss
from train.prior_model import CausalPrior

REPEATS = 15


@dataclass(frozen=True)
class Speedup:
    batch_size: int
    cached: float
    "Seconds a step, median."
    online: float

    @property
    def ratio(self) -> float:
        return self.online / self.cached


def measure(data: Path, cache: Path, prior: Path, decoder: Path, resolution: int) -> dict[str, Speedup]:
    """Speed-ups of the prior's and the decoder's step."""
    source = ImageFolder.open(str(data))
    usable = [sample for sample in source if sample.captions and _readable(source, sample)]
    online, cached = OnlineModels.load(prior, decoder), OnlineModels.load(prior, decoder)
    return {
        "prior": _prior(online, cached, source, usable, cache, prior),
        "decoder": _decoder(online, cached, source, usable, cache, decoder, resolution),
    }


def _prior(
    online: OnlineModels,
    cached: OnlineModels,
    source: ImageFolder,
    usable: list[Sample],
    cache: Path,
    repo: Path,
    batch_size: int = 16,
) -> Speedup:
    reader = CacheReader(cache, ["image", "text"])
    schedule = from_scheduler_config(models.config(repo / "scheduler", flag="--prior-model"))
    null = null_conditions(reader, "text", torch.device("cpu"))
    module = CausalPrior(cached.prior)
    batches = _batches(reader, batch_size)
    shape = reader.columns["image"].fields[0].item_shape
    stats = {"clip_mean": cached.prior.clip_mean, "clip_std": cached.prior.clip_std}

    def cached_step(step: int) -> Tensor:
        draws = _draws(step, batch_size, shape)
        return prior_loss(module, batches.read(step, 0), null, draws, schedule, **stats, snr_gamma=None)

    def online_step(step: int) -> Tensor:
        chosen = [usable[(step * batch_size + i) % len(usable)] for i in range(batch_size)]
        clip = torch.stack([_clip_pixels(online, _picture(source, sample)) for sample in chosen])
        captions = [sample.captions[0] for sample in chosen]
        return online_prior_loss(online, clip, captions, _draws(step, batch_size, shape))

    return _compare(cached_step, module, online_step, online.prior, batch_size)


def _decoder(
    online: OnlineModels,
    cached: OnlineModels,
    source: ImageFolder,
    usable: list[Sample],
    cache: Path,
    repo: Path,
    resolution: int,
    batch_size: int = 8,
) -> Speedup:
    reader = CacheReader(cache, ["image", f"latents@{resolution}"])
    schedule = from_scheduler_config(models.config(repo / "scheduler", flag="--decoder-model"))
    null = null_conditions(reader, "image", torch.device("cpu"))
    batches = _batches(reader, batch_size)
    shape = reader.columns[f"latents@{resolution}"].fields[0].item_shape

    def cached_step(step: int) -> Tensor:
        draws = _draws(step, batch_size, shape)
        return decoder_loss(cached.unet, batches.read(step, 0), null, draws, schedule, snr_gamma=None)

    def online_step(step: int) -> Tensor:
        chosen = [usable[(step * batch_size + i) % len(usable)] for i in range(batch_size)]
        pictures = [_picture(source, sample) for sample in chosen]
        clip = torch.stack([_clip_pixels(online, picture) for picture in pictures])
        pixels = torch.stack([movq_pixels(picture, resolution) for picture in pictures])
        return online_decoder_loss(online, pixels, clip, _draws(step, batch_size, shape))

    return _compare(cached_step, cached.unet, online_step, online.unet, batch_size)


def _compare(
    cached: Callable[[int], Tensor],
    cached_model: torch.nn.Module,
    online: Callable[[int], Tensor],
    online_model: torch.nn.Module,
    batch_size: int,
) -> Speedup:
    """Whole optimizer steps of both sides in turn, so that a busy moment of the machine hits both."""
    sides = [(cached, _optimizer(cached_model)), (online, _optimizer(online_model))]
    seconds: tuple[list[float], list[float]] = ([], [])
    for step in range(REPEATS + 1):
        for (losses, optimizer), times in zip(sides, seconds, strict=True):
            started = time.perf_counter()
            losses(step).mean().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if step:  # the first is a warm-up
                times.append(time.perf_counter() - started)
    return Speedup(batch_size, cached=median(seconds[0]), online=median(seconds[1]))


def _optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)


def _batches(reader: CacheReader, batch_size: int) -> TrainingBatches:
    share = Slice(rank=0, world_size=1, micro_batch_size=batch_size, num_rounds=1)
    return TrainingBatches(reader, np.zeros(0, dtype=np.int64), share, 0, torch.device("cpu"))


def _draws(step: int, batch_size: int, shape: tuple[int, ...]) -> Draws:
    positions = torch.arange(batch_size)
    return draw(0, step, positions, shape=shape, num_train_timesteps=1000, cond_dropout=0.1)


def _picture(source: ImageFolder, sample: Sample) -> Image.Image:
    return images.decode(source.read(sample))


def _clip_pixels(online: OnlineModels, picture: Image.Image) -> Tensor:
    return online.image_processor(images=picture, return_tensors="pt").pixel_values[0]


def _readable(source: ImageFolder, sample: Sample) -> bool:
    try:
        _picture(source, sample)
    except ValueError:
        return False
    return True
