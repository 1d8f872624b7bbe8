"""The noise schedule, its targets and the loss: float32 whatever the precision of the run.

The reference casts the table of alpha-bars to the training precision before it takes 1 - alpha-bar; in
bfloat16 the first 21 of the prior's 1000 timesteps then get no noise at all (diffusers
`DDPMScheduler.add_noise`). Here every input is raised to float32 first.

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise        SNR_t = a_t / (1 - a_t)

Legend: B samples, T timesteps, (...) the shape of one sample.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from data_tools.errors import UserError

PredictionType = Literal["epsilon", "sample", "v_prediction"]

# What decides the betas, and nothing else: sampling options of a scheduler do not concern training.
_BETA_KEYS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
)


@dataclass(frozen=True)
class NoiseSchedule:
    """How much noise each timestep has, and what the model is to predict."""

    alphas_cumprod: Tensor
    """(T,) float32, share of the signal's variance left at each timestep"""
    prediction_type: PredictionType
    """the noise ("epsilon"), the clean input ("sample") or the velocity"""

    @property
    def num_train_timesteps(self) -> int:
        """T."""
        return self.alphas_cumprod.shape[0]

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        """The same schedule with its table on `device`."""
        return NoiseSchedule(self.alphas_cumprod.to(device), self.prediction_type)

    def add_noise(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of x_0 (B, ...) and noise (B, ...) at timesteps (B,). Returns (B, ...) float32."""
        signal, sigma = self._scales(timesteps, x0.ndim)
        return signal * x0.float() + sigma * noise.float()  # (B, ...)

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the model should predict, (B, ...) float32. Velocity: Salimans & Ho 2022, arXiv 2202.00512."""
        if self.prediction_type == "epsilon":
            return noise.float()
        if self.prediction_type == "sample":
            return x0.float()
        signal, sigma = self._scales(timesteps, x0.ndim)
        return signal * noise.float() - sigma * x0.float()  # (B, ...)

    def snr(self, timesteps: Tensor) -> Tensor:
        """Signal-to-noise ratio (of variances) at timesteps (B,). Returns (B,) float32."""
        alpha_bar = self.alphas_cumprod[timesteps]  # (B,)
        return alpha_bar / (1.0 - alpha_bar)

    def _scales(self, timesteps: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        alpha_bar = self.alphas_cumprod[timesteps]  # (B,)
        alpha_bar = alpha_bar.reshape(-1, *[1] * (ndim - 1))  # (B, 1, ...)
        return alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt()


def from_scheduler_config(config: Mapping[str, Any], *, flag: str = "scheduler config") -> NoiseSchedule:
    """The training schedule of any Kandinsky scheduler's config (DDPM, DDIM, UnCLIP, …).

    Betas are those diffusers' `DDPMScheduler` builds, which for UnCLIP are bit-equal to its own. Keys that a
    config leaves out take its class's defaults: UnCLIP knows one beta schedule, "squaredcos_cap_v2".
    Raises `UserError`, beginning with `flag`, for what training or diffusers does not know.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    prediction_type = config.get("prediction_type", "epsilon")
    if prediction_type not in get_args(PredictionType):
        wanted = ", ".join(get_args(PredictionType))
        raise UserError(f"{flag}: prediction_type is {prediction_type!r}, wanted one of {wanted}")
    betas = {key: config[key] for key in _BETA_KEYS if config.get(key) is not None}
    if config.get("_class_name") == "UnCLIPScheduler":
        betas.setdefault("beta_schedule", "squaredcos_cap_v2")
    try:
        alphas_cumprod = DDPMScheduler(**betas).alphas_cumprod.to(torch.float32)  # (T,)
    except (ValueError, TypeError, RuntimeError) as err:
        raise UserError(f"{flag}: the scheduler's betas: {str(err).splitlines()[0]}") from None
    return NoiseSchedule(alphas_cumprod, cast(PredictionType, prediction_type))


def min_snr_weight(snr: Tensor, gamma: float, prediction_type: PredictionType) -> Tensor:
    """Min-SNR-gamma loss weight of each sample (Hang et al. 2023, arXiv 2303.09556). (B,) -> (B,).

    The paper's min(SNR, gamma) weighs an error in x_0. The same error is SNR times as large when it is
    measured in the noise and SNR + 1 times in the velocity, so those weights are divided by that. Where the
    SNR is 0 (zero terminal SNR) the noise has weight 1.
    """
    if prediction_type == "sample":
        return snr.clamp(max=gamma)
    if prediction_type == "epsilon":
        return (gamma / snr).clamp(max=1.0)
    return snr.clamp(max=gamma) / (snr + 1.0)


def loss_per_sample(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Squared error averaged over all but the batch axis, in float32. 2 × (B, ...), (B,) -> (B,)."""
    assert prediction.shape == target.shape, f"{tuple(prediction.shape)} against {tuple(target.shape)}"
    loss = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)  # (B,)
    return loss if weight is None else loss * weight
