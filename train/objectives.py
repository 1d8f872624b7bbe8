"""The two objectives: what a step of the prior and of the decoder minimises.

Pure functions; all that is random is an argument. `batch` holds the cached columns of a micro-batch, `null`
the cached null conditions; both are on the model's device, in any floating dtype. Names are diffusers' own.

The prior takes several draws of noise and timestep for each sample (`Draws`), the decoder one: all of the
UNet's work depends on them, so more of them would cost as much as more samples.

Legend: B samples, K draws of each, N text rows (the caller trims them to the batch's longest), M rows of the
null text (2 for CLIP: start and end), D embedding width, C latent channels, h, w latent height and width.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from train.diffusion import NoiseSchedule, loss_per_sample, min_snr_weight
from train.draws import Draws

Model = Callable[..., Any]


def prior_loss(
    model: Model,
    batch: Mapping[str, Tensor],
    null: Mapping[str, Tensor],
    draws: Draws,
    schedule: NoiseSchedule,
    **settings: Any,
) -> Tensor:
    """Loss of each sample for the text-to-image-embedding prior, the mean over its draws. (B,) float32.

    As `prior_draw_losses`, where the arguments are explained.
    """
    losses = prior_draw_losses(model, batch, null, draws, schedule, **settings)  # (B · K,)
    return losses.view(batch["image_embeds"].shape[0], -1).mean(dim=1)


def prior_draw_losses(
    model: Model,
    batch: Mapping[str, Tensor],
    null: Mapping[str, Tensor],
    draws: Draws,
    schedule: NoiseSchedule,
    *,
    clip_mean: Tensor,
    clip_std: Tensor,
    snr_gamma: float | None,
    row_multiple: int = 1,
) -> Tensor:
    """Loss of each draw for the text-to-image-embedding prior. (B · K,) float32.

    batch      image_embeds (B, D) raw, prompt_embeds (B, D), text_encoder_hidden_states (B, N, D) padded on
               the right with anything finite, n_tokens (B,) int64 valid rows
    null       prompt_embeds (D,), text_encoder_hidden_states (M, D): the empty prompt
    draws      noise (B · K, D); the condition is dropped for all draws of a sample or for none of them, since
               they share what the model makes of it
    clip_mean, clip_std   (1, D), the prior's own; the embedding is normalised by them in float32
    snr_gamma  Min-SNR gamma, or None for equal weights
    row_multiple  text rows are padded to a multiple of it, so that compiled code sees few shapes

    `model(noisy, timesteps, prompt_embeds, hidden, n_tokens)` is `CausalPrior.forward`.
    """
    x0 = (batch["image_embeds"].float() - clip_mean.float()) / clip_std.float()  # (B, D)
    x0 = x0.repeat_interleave(draws.noise.shape[0] // x0.shape[0], dim=0)  # (B · K, D)
    noisy = schedule.add_noise(x0, draws.noise, draws.timesteps)  # (B · K, D)
    prompt_embeds, hidden, n_tokens = _drop_text(batch, null, draws.drop, row_multiple)
    prediction = model(noisy, draws.timesteps, prompt_embeds, hidden, n_tokens)  # (B · K, D)
    return _weighted_loss(prediction, x0, draws, schedule, snr_gamma)


def decoder_loss(
    model: Model,
    batch: Mapping[str, Tensor],
    null: Mapping[str, Tensor],
    draws: Draws,
    schedule: NoiseSchedule,
    *,
    snr_gamma: float | None,
) -> Tensor:
    """Loss of each sample for the image-embedding-to-latents decoder. Returns (B,) float32.

    batch      latents (B, C, h, w) as MoVQ encodes them, image_embeds (B, D) raw
    null       image_embeds (D,): the embedding of an all-zero normalised picture
    draws      noise (B, C, h, w)
    snr_gamma  Min-SNR gamma, or None for equal weights

    `model` is diffusers' `UNet2DConditionModel`. The first C of its 2C output channels are the prediction,
    the rest a learned variance that neither the reference nor this trains.
    """
    latents = batch["latents"]  # (B, C, h, w)
    noisy = schedule.add_noise(latents, draws.noise, draws.timesteps)  # (B, C, h, w)
    embeds = batch["image_embeds"].float()  # (B, D)
    embeds = torch.where(draws.drop[:, None], null["image_embeds"].to(embeds), embeds)  # (B, D)
    output = model(noisy, draws.timesteps, None, added_cond_kwargs={"image_embeds": embeds}).sample
    prediction = output[:, : latents.shape[1]]  # (B, C, h, w)
    return _weighted_loss(prediction, latents, draws, schedule, snr_gamma)


def _drop_text(
    batch: Mapping[str, Tensor], null: Mapping[str, Tensor], drop: Tensor, row_multiple: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The text condition with dropped samples' replaced by the null text: (B, D), (B, R, D), (B,).

    R is the larger of N and M, rounded up to `row_multiple`.
    """
    prompt_embeds, hidden = batch["prompt_embeds"], batch["text_encoder_hidden_states"]
    null_hidden = null["text_encoder_hidden_states"].to(hidden)  # (M, D)
    n_null = null_hidden.shape[0]
    n_rows = -(-max(hidden.shape[1], n_null) // row_multiple) * row_multiple
    hidden = F.pad(hidden, (0, 0, 0, n_rows - hidden.shape[1]))  # (B, R, D)
    null_hidden = F.pad(null_hidden, (0, 0, 0, n_rows - n_null))  # (R, D)
    return (
        torch.where(drop[:, None], null["prompt_embeds"].to(prompt_embeds), prompt_embeds),
        torch.where(drop[:, None, None], null_hidden, hidden),
        torch.where(drop, n_null, batch["n_tokens"]),
    )


def _weighted_loss(
    prediction: Tensor, x0: Tensor, draws: Draws, schedule: NoiseSchedule, snr_gamma: float | None
) -> Tensor:
    target = schedule.target(x0, draws.noise, draws.timesteps)  # (B, ...)
    weight = None
    if snr_gamma is not None:
        weight = min_snr_weight(schedule.snr(draws.timesteps), snr_gamma, schedule.prediction_type)  # (B,)
    return loss_per_sample(prediction, target, weight)
