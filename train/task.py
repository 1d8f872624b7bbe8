"""All that differs between training the prior and training the decoder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from train.batches import Batch
from train.draws import Draws
from train.export import Base
from train.lora import Adapter

if TYPE_CHECKING:
    from train.preview import PreviewPlan

Loss = Callable[[nn.Module, Batch, Batch, Draws], Tensor]
"(module, batch, null conditions, draws) → one value a sample, (B,) float32."
Sampler = Callable[[nn.Module, Batch, Batch, list[torch.Generator], tuple[float, ...]], Tensor]
"(module, batch, null conditions, generators, guidance scales) → embeddings, see `train.sampler`."


@dataclass(frozen=True)
class Task:
    name: str
    "The pipeline's component, and folder of the weights: `prior` or `unet`."
    model: Any
    "The diffusers model, which is saved."
    module: nn.Module
    "What the step calls: `model`, or a wrapper around it."
    null_column: str
    "Column whose null condition replaces dropped conditions."
    noised: str
    "Field of the batch that noise is added to; the noise of a batch has its shape."
    num_train_timesteps: int
    make_loss: Callable[[torch.device], Loss]
    make_draw_losses: Callable[[torch.device], Loss]
    "As `make_loss`, but one value a draw, (B · K,) float32."
    enable_gradient_checkpointing: Callable[[], None]
    compile: Callable[[str], None]
    "With torch.compile's mode; in place, the names of the weights stay."
    base: Base
    "The pipeline that training starts from."
    prior: str | None = None
    "Of a decoder: the prior that its README.md names."
    validation_draws: int = 1
    "Of noise and timestep for each held-out sample."
    make_sampler: Callable[[torch.device], Sampler] | None = None
    "None: nothing is sampled, at no validation."
    preview: "PreviewPlan | None" = None
    "Pictures to draw at each validation."
    adapter: Adapter | None = None
    "The LoRA on `model`, if that alone is trained and saved."
