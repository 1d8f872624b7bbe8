"""The learning rate as a pure function of the optimizer step: no state to save or to fall out of step.

The six schedules of the diffusers training scripts, equal to `diffusers.optimization.get_scheduler` at every
step of the run; past its end they stay where they ended (diffusers' cosine rises again). The reference steps
its scheduler object once for each process and multiplies its lengths by the accumulation steps, so there the
warm-up and the end come at the wrong time (diffusers #8384); here a step is an optimizer step.
"""

import math

from data_tools.errors import UserError

NAMES = ("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup")


def lr_factor(
    name: str,
    step: int,
    *,
    warmup_steps: int,
    total_steps: int,
    num_cycles: int = 1,
    power: float = 1.0,
    end_factor: float = 0.0,
) -> float:
    """The factor on the base learning rate for the update that follows `step` finished updates.

    name          one of `NAMES`
    step          finished optimizer steps
    warmup_steps  optimizer steps from 0 to the full rate ("constant" has no warm-up)
    total_steps   optimizer steps of the whole run
    num_cycles    restarts of "cosine_with_restarts"
    power         exponent of "polynomial"
    end_factor    last factor of "polynomial"; diffusers ends at a rate of 1e-7, which is 1e-7 / learning rate

    Raises UserError for another name.
    """
    if name not in NAMES:
        raise UserError(f"--lr-scheduler: {name!r} is unknown, wanted one of {', '.join(NAMES)}")
    if name == "constant":
        return 1.0
    if step < warmup_steps:
        return step / warmup_steps
    if name == "constant_with_warmup":
        return 1.0
    decay_steps = max(1, total_steps - warmup_steps)
    done = (step - warmup_steps) / decay_steps  # 0 after the warm-up, 1 at the end
    if step > total_steps or done >= 1.0:
        return end_factor if name == "polynomial" else 0.0
    if name == "linear":
        return (total_steps - step) / decay_steps
    if name == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    if name == "cosine_with_restarts":
        return 0.5 * (1.0 + math.cos(math.pi * (num_cycles * done % 1.0)))
    return (1.0 - end_factor) * math.pow(1.0 - done, power) + end_factor
