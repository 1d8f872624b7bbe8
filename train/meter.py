"""Running means on the device; the only place where the training loop waits for the GPU."""

import math
import time

import torch
from accelerate import Accelerator
from torch import Tensor

from data_tools.errors import DataFault
from train.batches import TrainingBatches


def require_finite(value: float, what: str, when: str) -> None:
    """Raises `DataFault` if training has diverged."""
    if not math.isfinite(value):
        raise DataFault(
            f"{what}: not finite {when}; no checkpoint holds it; "
            "lower --learning-rate, or use --mixed-precision bf16 instead of fp16"
        )


class Meter:
    """Collects the losses between two lines of metrics."""

    def __init__(self, accelerator: Accelerator, batches: TrainingBatches) -> None:
        self.accelerator, self.batches = accelerator, batches
        self.lr = 0.0
        self.grad_norm: Tensor | None = None
        "Of the last optimizer step, before clipping."
        self._loss = torch.zeros((), device=accelerator.device)
        self._rounds = 0
        self.restart_clock()

    def add(self, losses: Tensor) -> None:
        """The losses (B,) of one micro-batch; no host sync."""
        self._loss += losses.detach().mean()
        self._rounds += 1

    def restart_clock(self) -> None:
        """Leave out of the rates what came since `read` (a validation, a checkpoint)."""
        self._started, self._waited = time.perf_counter(), self.batches.wait_seconds

    def read(self, step: int) -> dict[str, float]:
        """Means since the last call, over all ranks. Raises `DataFault` if the loss is not finite."""
        mean = self._loss / self._rounds
        loss = float(self.accelerator.reduce(mean, reduction="mean"))
        first = step - self._rounds // self.batches.share.num_rounds
        require_finite(loss, "loss", f"between steps {first} and {step}")
        seconds = time.perf_counter() - self._started
        share = self.batches.share
        samples = self._rounds * share.micro_batch_size * share.world_size
        values = {
            "loss": loss,
            "lr": self.lr,
            "samples_per_second": samples / seconds,
            "data_wait": (self.batches.wait_seconds - self._waited) / seconds,
        }
        if self.grad_norm is not None:
            norm = float(self.grad_norm)
            if math.isfinite(norm):  # under fp16 an infinite one is a skipped step
                values["grad_norm"] = norm
        self._loss, self._rounds = torch.zeros_like(self._loss), 0
        self.restart_clock()
        return values

    @staticmethod
    def as_text(values: dict[str, float]) -> str:
        """For the progress bar."""
        return (
            f"loss {values['loss']:.4f}, lr {values['lr']:.1e}, "
            f"{values['samples_per_second']:.1f} samples/s, data wait {values['data_wait']:.0%}"
        )
