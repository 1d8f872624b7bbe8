"""All that differs between training the prior and training the decoder."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from train.batches import Batch
from train.draws import Draws
from train.export import Base
from train.lora import Adapter

Loss = Callable[[nn.Module, Batch, Batch, Draws], Tensor]
"(module, batch, null conditions, draws) → one value a sample, (B,) float32."


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
    enable_gradient_checkpointing: Callable[[], None]
    compile: Callable[[str], None]
    "With torch.compile's mode; in place, the names of the weights stay."
    export: Callable[[], None]
    "Write the finished pipeline into the output folder."
    base: Base
    "The pipeline that training starts from."
    adapter: Adapter | None = None
    "The LoRA on `model`, if that alone is trained and saved."
