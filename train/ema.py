"""Exponential moving average of the trained weights (Polyak and Juditsky 1992), as diffusers' `EMAModel`.

The average is kept in float32 on the parameters' device. How much of it a step keeps is a function of the
step, so a checkpoint holds the averages alone:

    decay(n) = min(ramp(n - 1), ema_decay)      after n finished optimizer steps; 0 at the first
    ramp(s)  = (1 + s) / (10 + s), or 1 - (1 + s)^-ema_power
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from train.sharding import local


def ema_decay(num_steps: int, limit: float, power: float | None = None) -> float:
    """Share of the average that stays when the weights of the `num_steps`-th finished step come in."""
    step = num_steps - 1
    if step <= 0:
        return 0.0
    ramp = (1 + step) / (10 + step) if power is None else 1.0 - (1 + step) ** -power
    return min(ramp, limit)


class Ema:
    """The averages of some parameters, in their order; sharded as they are."""

    def __init__(self, parameters: list[nn.Parameter], *, limit: float, power: float | None = None) -> None:
        self.parameters, self.limit, self.power = parameters, limit, power
        self.shadow: list[Tensor] = [p.detach().to(torch.float32, copy=True) for p in parameters]

    @torch.no_grad()
    def update(self, num_steps: int) -> None:
        """Take in the weights after `num_steps` finished steps; one fused kernel, no host sync."""
        weight = 1.0 - ema_decay(num_steps, self.limit, self.power)
        new = [local(p.detach()).to(torch.float32) for p in self.parameters]
        torch._foreach_lerp_([local(average) for average in self.shadow], new, weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has the averages for weights; outside again exactly what it had before."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchanges values, not storage: compiled graphs and shards go on pointing where they do."""
        for parameter, average in zip(self.parameters, self.shadow):
            own, other = local(parameter.detach()), local(average)
            kept = own.clone()
            own.copy_(other)
            other.copy_(kept)
