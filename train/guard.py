"""What is not finite changes nothing: the step is stopped before its update, and the samples are named.

Asking the device in every step whether its numbers are finite would make the host wait for it. So the answer
stays on the device: fused AdamW reads it there (`found_inf`, as GradScaler uses it) and leaves weights and
moments alone, in this step and all that follow, until the next line of metrics reads it and ends the run.
Optimizers that cannot do this are not called before the host has asked.

Under fp16 a gradient that is not finite only means that GradScaler skips the step and halves its scale; such
steps are counted. A loss that is not finite ends the run there too.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from train.ranks import Diverged

SHOWN = 8
"Keys of samples in a message, at the most."
Keys = Callable[[int], list[str]]
"Optimizer step → keys of this rank's samples in it, in the order in which their losses come."


def require_finite(value: float, what: str, when: str) -> None:
    """Raises `Diverged` if training has diverged."""
    if not math.isfinite(value):
        raise Diverged(
            f"{what}: not finite {when}; no checkpoint holds it; "
            "lower --learning-rate, or use --mixed-precision bf16 instead of fp16"
        )


class Guard:
    """Watches the losses (B,) and the gradient's norm of each optimizer step."""

    def __init__(self, accelerator: Accelerator, optimizer: torch.optim.Optimizer, keys: Keys) -> None:
        self.accelerator, self.keys = accelerator, keys
        device = accelerator.device
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        "The first step with something that is not finite."
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        "Steps that GradScaler skipped."
        self._found = torch.zeros((), dtype=torch.float32, device=device)
        self._finite: list[Tensor] = []
        self._bad_losses: Tensor | None = None
        self._scaled = accelerator.scaler is not None
        self._asks = False
        if not self._scaled:
            self._asks = not _heeds_found_inf(optimizer)
            if not self._asks:
                optimizer.grad_scale, optimizer.found_inf = None, self._found  # type: ignore[attr-defined]

    def add(self, losses: Tensor) -> None:
        """The losses (B,) of one accumulation round."""
        self._finite.append(losses.detach().isfinite())

    def look(self, step: int, norm: Tensor) -> None:
        """After the last round's backward, before the update; `norm` is the same on all ranks."""
        finite = torch.cat(self._finite)  # (rounds · B,)
        self._finite = []
        bad = ~finite.all()
        if self._scaled:
            self.skipped += ~norm.isfinite()
        else:
            bad |= ~norm.isfinite()
        if self.accelerator.num_processes > 1:
            bad = self.accelerator.reduce(bad.float(), reduction="sum") > 0
        first = bad & (self.bad_step < 0)
        self._bad_losses = (
            ~finite if self._bad_losses is None else torch.where(first, ~finite, self._bad_losses)
        )
        self.bad_step = torch.where(first, step, self.bad_step)
        self._found.copy_(self.bad_step >= 0)
        if self._asks:
            self.check()

    def counts(self) -> dict[str, float]:
        """Under fp16 the steps skipped since the start of this process; a host sync."""
        return {"skipped_steps": int(self.skipped)} if self._scaled else {}

    def check(self) -> None:
        """Raises `Diverged`, on all ranks, if a step since the last call went wrong; a host sync."""
        step = int(self.bad_step)
        if step < 0:
            return
        assert self._bad_losses is not None
        bad = self._bad_losses.tolist()
        mine = self.keys(step)
        named = [key for key, wrong in zip(mine, bad, strict=True) if wrong]
        losses = sorted(set(_gathered(self.accelerator, named)))
        keys = losses or sorted(set(_gathered(self.accelerator, mine)))
        what = "loss" if losses else "gradient"
        more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        raise Diverged(
            f"{what}: not finite in the step after {step}, samples {', '.join(keys[:SHOWN])}{more}; its "
            "update was not made, and no checkpoint was written since; lower --learning-rate, or use "
            "--mixed-precision bf16 instead of fp16"
        )


def _heeds_found_inf(optimizer: torch.optim.Optimizer) -> bool:
    return isinstance(optimizer, torch.optim.AdamW) and bool(optimizer.defaults.get("fused"))


def _gathered(accelerator: Accelerator, keys: list[str]) -> list[str]:
    if accelerator.num_processes == 1:
        return keys
    gathered: list[Any] = gather_object(keys)
    return [str(key) for key in gathered]
