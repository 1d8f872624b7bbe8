"""Image embeddings sampled from cached texts, as `KandinskyV22PriorPipeline` samples them.

The steps, the schedule and the guidance are the pipeline's; with the same generators the same embeddings come
out. The model is called as the training step calls it; the scheduler works in float32 at every precision.

Legend: B samples, G guidance scales, U of them above 1, N text rows, M rows of the null text, D embedding
width.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data_tools import models
from data_tools.errors import UserError
from train.draws import Purpose, philox
from train.objectives import Model

if TYPE_CHECKING:
    from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler

NUM_STEPS = 25
"Of sampling; the pipeline's default."
GUIDANCE = 4.0
"The pipeline's default."
TEXT = ("prompt_embeds", "text_encoder_hidden_states", "n_tokens")

# what the pipeline's loop can be run with
_WANTED = {
    "_class_name": ("UnCLIPScheduler",),
    "prediction_type": ("sample", "epsilon"),
    "variance_type": ("fixed_small_log",),
}


def make_scheduler(folder: Path, *, flag: str) -> "UnCLIPScheduler":
    """The scheduler that a prior is sampled with. Raises `UserError`, beginning with `flag`, for another."""
    from diffusers.schedulers.scheduling_unclip import UnCLIPScheduler

    config = models.config(folder, flag=flag)
    for key, wanted in _WANTED.items():
        if (found := config.get(key, wanted[-1])) not in wanted:
            raise UserError(
                f"{flag}: {folder}: {key} is {found!r}, wanted {' or '.join(wanted)} to sample embeddings; "
                "--sampled-validation 0 trains without, and without validation prompts"
            )
    return UnCLIPScheduler.from_config(config)


def make_generators(seed: int, numbers: Sequence[int], purpose: Purpose) -> list[torch.Generator]:
    """A generator for each of `numbers`, each in [0, 2^32): on the CPU, so that all devices draw the same."""
    words = philox((0, torch.tensor(numbers, dtype=torch.int64), 0, purpose << 8), seed)[0]
    return [torch.Generator().manual_seed(word) for word in words.tolist()]


@torch.no_grad()
def sample_embeddings(
    model: Model,
    batch: Mapping[str, Tensor],
    null: Mapping[str, Tensor],
    generators: list[torch.Generator],
    guidance_scales: tuple[float, ...],
    *,
    scheduler: "UnCLIPScheduler",
    clip_mean: Tensor,
    clip_std: Tensor,
) -> Tensor:
    """Image embeddings of each text with each guidance scale, as the encoder makes them. (B, G, D) float32.

    batch            prompt_embeds (B, D), text_encoder_hidden_states (B, N, D), n_tokens (B,)
    null             prompt_embeds (D,), text_encoder_hidden_states (M, D): the empty prompt
    generators       B · G, those of one text after each other
    guidance_scales  of classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598); up to 1 only the
                     conditional prediction is made, as in the pipeline
    clip_mean, clip_std   (1, D), the prior's own

    `model` is `CausalPrior.forward`, called twice in a step at most: the scales of a text are draws of it,
    and all predictions without a text are draws of the empty prompt, so that each is read once.
    """
    from diffusers.utils.torch_utils import randn_tensor

    device, num_scales = clip_mean.device, len(guidance_scales)
    shape = (len(batch["n_tokens"]), num_scales, clip_mean.shape[-1])  # (B, G, D)
    assert len(generators) == shape[0] * num_scales, f"{len(generators)} generators for {shape}"
    guided = [i for i, scale in enumerate(guidance_scales) if scale > 1]
    scales = torch.tensor([guidance_scales[i] for i in guided], device=device)[:, None]  # (U, 1)
    text = tuple(batch[name] for name in TEXT)
    hidden = null["text_encoder_hidden_states"][None]  # (1, M, D)
    no_text = (null["prompt_embeds"][None], hidden, torch.tensor([hidden.shape[1]], device=device))

    def predict(noisy: Tensor, condition: tuple[Tensor, ...], t: int) -> Tensor:
        rows = noisy.flatten(0, 1)  # (B · G or B · U, D)
        timesteps = torch.full(rows.shape[:1], t, device=device)
        return model(rows, timesteps, *condition).float().view_as(noisy)

    scheduler.set_timesteps(NUM_STEPS)  # on the CPU, where its tables are
    timesteps: list[int] = scheduler.timesteps.tolist()
    options: dict[str, Any] = {"generator": generators, "return_dict": False}
    x = randn_tensor((len(generators), shape[-1]), generator=generators, device=device, dtype=torch.float32)
    x = x * scheduler.init_noise_sigma  # (B · G, D)
    for t, previous in zip(timesteps, [*timesteps[1:], None], strict=True):
        noisy = x.view(shape)
        prediction = predict(noisy, text, t)  # (B, G, D)
        if guided:
            without = predict(noisy[:, guided], no_text, t)  # (B, U, D)
            prediction[:, guided] = without + scales * (prediction[:, guided] - without)
        x = scheduler.step(prediction.flatten(0, 1), t, x, prev_timestep=previous, **options)[0]
    return x.view(shape) * clip_std.float() + clip_mean.float()
