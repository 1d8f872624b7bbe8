"""One optimizer step: draws, loss, gradient, update, average. Nothing in it waits for the device."""

import math
from collections.abc import Generator

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from train.batches import Batch, Slice
from train.draws import Draws, draw
from train.ema import Ema
from train.guard import Guard
from train.lora import seed_dropout
from train.meter import Meter
from train.options import TrainOptions
from train.sharding import clip_grad_norm
from train.task import Loss, Task
from train.zero import Engine

Stream = Generator[tuple[Batch, Tensor], None, None]
"Micro-batches on the device, and the positions (B,) of their samples in the global batch."


class Step:
    """What an optimizer step needs; `take` takes one."""

    def __init__(
        self,
        task: Task,
        options: TrainOptions,
        accelerator: Accelerator,
        *,
        module: nn.Module,
        optimizer: torch.optim.Optimizer | Engine,
        parameters: list[nn.Parameter],
        loss: Loss,
        null: Batch,
        share: Slice,
        guard: Guard,
        ema: Ema | None,
    ) -> None:
        self.task, self.options, self.accelerator = task, options, accelerator
        self.module, self.optimizer, self.parameters = module, optimizer, parameters
        self.loss, self.null, self.share, self.guard, self.ema = loss, null, share, guard, ema
        self.backward, self.unsynchronised = accelerator.backward, [module]
        if isinstance(optimizer, Engine):
            self.backward, self.unsynchronised = optimizer.backward, []
        "What Accelerate keeps from adding up gradients over the ranks before the last round."

    def take(self, step: int, stream: Stream, meter: Meter) -> None:
        """The update that follows `step` finished ones."""
        accelerator, ema = self.accelerator, self.ema
        if self.options.lora_dropout:
            seed_dropout(self.options.seed, step, accelerator.process_index)
        for _ in range(self.share.num_rounds):
            batch, positions = next(stream)
            draws = self._draw(step, batch, positions)
            with accelerator.accumulate(*self.unsynchronised):
                losses = self.loss(self.module, batch, self.null, draws)  # (B,)
                self.backward(losses.mean())
                self.guard.add(losses)
                if accelerator.sync_gradients:
                    meter.grad_norm = self._clip()
                    self.guard.look(step, meter.grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
            meter.add(losses)
        if ema is not None:
            ema.update(step + 1)

    def _draw(self, step: int, batch: Batch, positions: Tensor) -> Draws:
        options, task = self.options, self.task
        return draw(
            options.seed,
            step,
            positions,
            shape=tuple(batch[task.noised].shape[1:]),
            num_train_timesteps=task.num_train_timesteps,
            cond_dropout=options.cond_dropout,
            num_draws=options.noise_draws,
            timestep_sampling=options.timestep_sampling,
            global_batch_size=self.share.global_batch_size,
        )

    def _clip(self) -> Tensor:
        """The gradient's norm over all ranks, (), before it is cut down to --max-grad-norm (0: not cut)."""
        if isinstance(self.optimizer, Engine):
            return self.optimizer.grad_norm()  # its step clips
        limit = self.options.max_grad_norm or math.inf
        return clip_grad_norm(self.accelerator, self.parameters, limit)
