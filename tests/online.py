"""The reference training steps as they run online: every frozen encoder, then the stock model, each time.

Support code for tests and benchmarks, written without a line of `train` (but for the type `Draws`), so that a
cached step can be held against it. What it follows is `reference/kandinsky-2-2.md` §1.4 and §1.5, with two
differences: the noise schedule stays in float32, and all that is random comes in as an argument, dropped
conditions included.

Legend: B samples, D embedding width, C latent channels, h, w latent size, R decoder resolution in px.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from diffusers import DDPMScheduler, PriorTransformer, UNet2DConditionModel, VQModel
from diffusers.training_utils import compute_snr
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPImageProcessor,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

from train.draws import Draws

# PIL's resampling, as the published recipe had it: transformers 5 gives the plain name to torchvision's
_ImageProcessor = getattr(transformers, "CLIPImageProcessorPil", CLIPImageProcessor)


@dataclass(frozen=True)
class OnlineModels:
    """Everything the two reference scripts hold in memory, in float32; `prior` and `unet` are trained."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModelWithProjection
    image_encoder: CLIPVisionModelWithProjection
    image_processor: CLIPImageProcessor
    prior: PriorTransformer
    prior_scheduler: DDPMScheduler
    movq: VQModel
    unet: UNet2DConditionModel
    decoder_scheduler: DDPMScheduler

    @classmethod
    def load(cls, prior_repo: Path, decoder_repo: Path) -> "OnlineModels":
        """Fresh copies from two local repositories in diffusers layout."""
        return cls(
            tokenizer=CLIPTokenizer.from_pretrained(prior_repo, subfolder="tokenizer"),
            text_encoder=_frozen(CLIPTextModelWithProjection, prior_repo, "text_encoder"),
            image_encoder=_frozen(CLIPVisionModelWithProjection, prior_repo, "image_encoder"),
            image_processor=_ImageProcessor.from_pretrained(prior_repo, subfolder="image_processor"),
            prior=PriorTransformer.from_pretrained(prior_repo, subfolder="prior").float().train(),
            # the reference builds it in code and never reads the repository's UnCLIP config
            prior_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample"),
            movq=_frozen(VQModel, decoder_repo, "movq"),
            unet=UNet2DConditionModel.from_pretrained(decoder_repo, subfolder="unet").float().train(),
            decoder_scheduler=DDPMScheduler.from_pretrained(decoder_repo, subfolder="scheduler"),
        )


def movq_pixels(picture: Image.Image, resolution: int) -> Tensor:
    """`center_crop` and `prepare_img` of train_text_to_image_decoder.py: (3, R, R) in -1 … 1."""
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    picture = picture.crop((left, top, left + side, top + side))
    picture = picture.resize((resolution, resolution), resample=Image.Resampling.BICUBIC, reducing_gap=1)
    array = np.array(picture.convert("RGB")).astype(np.float32) / 127.5 - 1
    return torch.from_numpy(np.transpose(array, [2, 0, 1]))


def online_prior_loss(
    models: OnlineModels,
    pixel_values_clip: Tensor,
    captions: list[str],
    draws: Draws,
    *,
    snr_gamma: float | None = None,
) -> Tensor:
    """Losses (B,) of one step of the prior. pixel_values_clip (B, 3, H, W) come from the image processor."""
    captions = ["" if drop else text for text, drop in zip(captions, draws.drop.tolist(), strict=True)]
    device = models.prior.device
    tokens = models.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").to(device)
    with torch.no_grad():
        text = models.text_encoder(tokens.input_ids)
        image_embeds = models.image_encoder(pixel_values_clip).image_embeds  # (B, D)
        clip_mean, clip_std = models.prior.clip_mean.clone(), models.prior.clip_std.clone()
        image_embeds = (image_embeds - clip_mean) / clip_std
    noisy = models.prior_scheduler.add_noise(image_embeds, draws.noise, draws.timesteps)
    prediction = models.prior(
        noisy,
        timestep=draws.timesteps,
        proj_embedding=text.text_embeds,
        encoder_hidden_states=text.last_hidden_state,
        attention_mask=tokens.attention_mask.bool(),
    ).predicted_image_embedding
    loss = F.mse_loss(prediction.float(), image_embeds.float(), reduction="none").mean(dim=1)  # (B,)
    return loss * _min_snr(models.prior_scheduler, draws.timesteps, snr_gamma)


def online_decoder_loss(
    models: OnlineModels,
    pixel_values: Tensor,
    clip_pixel_values: Tensor,
    draws: Draws,
    *,
    snr_gamma: float | None = None,
) -> Tensor:
    """Losses (B,) of one step of the decoder.

    pixel_values (B, 3, R, R) in [-1, 1]; clip_pixel_values (B, 3, H, W) come from the image processor.
    A dropped sample's picture is all zeros *after* normalisation, which is CLIP's mean colour and not black.
    """
    clip_pixel_values = clip_pixel_values.clone()
    clip_pixel_values[draws.drop] = 0.0
    with torch.no_grad():
        latents = models.movq.encode(pixel_values).latents  # (B, C, h, w)
        image_embeds = models.image_encoder(clip_pixel_values).image_embeds  # (B, D)
    noisy = models.decoder_scheduler.add_noise(latents, draws.noise, draws.timesteps)
    output = models.unet(
        noisy, draws.timesteps, None, added_cond_kwargs={"image_embeds": image_embeds}
    ).sample
    prediction = output[:, :4]
    kind = models.decoder_scheduler.config.prediction_type
    assert kind == "epsilon", f"the reference's target is the noise, this scheduler's is {kind}"
    loss = F.mse_loss(prediction.float(), draws.noise.float(), reduction="none").mean(dim=(1, 2, 3))  # (B,)
    return loss * _min_snr(models.decoder_scheduler, draws.timesteps, snr_gamma)


def _min_snr(scheduler: DDPMScheduler, timesteps: Tensor, snr_gamma: float | None) -> Tensor | float:
    if snr_gamma is None:
        return 1.0
    snr = compute_snr(scheduler, timesteps)  # (B,)
    weight = torch.minimum(snr, torch.full_like(snr, snr_gamma))
    return weight / snr if scheduler.config.prediction_type == "epsilon" else weight


def _frozen(model_class: Any, repo: Path, subfolder: str) -> Any:
    model: nn.Module = model_class.from_pretrained(repo, subfolder=subfolder)
    return model.float().eval().requires_grad_(False)
