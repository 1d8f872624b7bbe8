"""Running means on the device; the only place where the training loop waits for the GPU."""

import math
import resource
import sys
import time

import torch
from accelerate import Accelerator
from torch import Tensor

from train.batches import TrainingBatches


class Meter:
    """Collects the losses between two lines of metrics."""

    def __init__(self, accelerator: Accelerator, batches: TrainingBatches) -> None:
        self.accelerator, self.batches = accelerator, batches
        self.lr = 0.0
        self.grad_norm: Tensor | None = None
        "Of the last optimizer step, before clipping."
        self._loss = torch.zeros((), device=accelerator.device)
        self._rounds = 0
        self._rounds_before = 0
        "Of these the ones of an earlier process."
        self.restart_clock()

    def add(self, losses: Tensor) -> None:
        """The losses (B,) of one micro-batch; no host sync."""
        self._loss += losses.detach().mean()
        self._rounds += 1

    def state(self) -> dict[str, float]:
        """What has been added since the last `read`, over all ranks, for a checkpoint in between."""
        loss = float(self.accelerator.reduce(self._loss, reduction="mean"))
        return {"loss": loss, "rounds": self._rounds}

    def load(self, state: dict[str, float]) -> None:
        """Go on from what `state` gave."""
        self._loss.fill_(state["loss"])
        self._rounds = int(state["rounds"])
        self._rounds_before = self._rounds

    def restart_clock(self) -> None:
        """Leave out of the rates what came since `read` (a validation, a checkpoint)."""
        self._started, self._waited = time.perf_counter(), self.batches.wait_seconds

    def read(self) -> dict[str, float]:
        """Means since the last call, over all ranks."""
        mean = self._loss / self._rounds
        loss = float(self.accelerator.reduce(mean, reduction="mean"))
        seconds = time.perf_counter() - self._started
        share = self.batches.share
        samples = (self._rounds - self._rounds_before) * share.micro_batch_size * share.world_size
        values = {
            "loss": loss,
            "lr": self.lr,
            "samples_per_second": samples / seconds,
            "data_wait": (self.batches.wait_seconds - self._waited) / seconds,
            "memory_gib": peak_memory(self.accelerator.device) / 2**30,
        }
        if self.grad_norm is not None:
            norm = float(self.grad_norm)
            if math.isfinite(norm):  # under fp16 an infinite one is a skipped step
                values["grad_norm"] = norm
        self._loss, self._rounds, self._rounds_before = torch.zeros_like(self._loss), 0, 0
        self.restart_clock()
        return values

    @staticmethod
    def as_text(values: dict[str, float]) -> str:
        """For the progress bar."""
        skipped = f", {values['skipped_steps']} skipped" if values.get("skipped_steps") else ""
        return (
            f"loss {values['loss']:.4f}, lr {values['lr']:.1e}, "
            f"{values['samples_per_second']:.1f} samples/s, data wait {values['data_wait']:.0%}, "
            f"{values['memory_gib']:.1f} GiB{skipped}"
        )


def peak_memory(device: torch.device) -> int:
    """Most bytes so far: allocated on the GPU, or this process's in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
