"""Optimizer state that is shared out over the ranks, by DeepSpeed: ZeRO of stage 1 or 2.

The weights are whole on each rank; of stage 2 gradients are shared out as well (Rajbhandari et al. 2019,
arXiv 1910.02054).

    accelerate launch --use_deepspeed --zero_stage 2 -m train.prior --cache shards/
    ACCELERATE_USE_CPU=true accelerate launch --use_deepspeed …        without a GPU, over gloo

Accelerate reads what its launcher asked for, and then takes the run for plain data parallelism: half
precision is its autocast over float32 weights, as without DeepSpeed. The engine, made here, gets the
optimizer that one process would have. That steps on flat tensors, one a parameter group, of which each rank
has a part.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin
from torch import Tensor, nn

from data_tools.errors import UserError
from data_tools.models import first_line
from train.optimizer import Named
from train.options import TrainOptions

STAGES = (1, 2)
LEFT_OUT = ("optimizer", "scheduler", "amp", "torch_autocast")
"Of a DeepSpeed config: the trainers' flags say these."
MOMENTS = ("exp_avg", "exp_avg_sq")
"AdamW's state, but for its number of steps."


def deepspeed_config(options: TrainOptions) -> dict[str, Any] | None:
    """What the engine is given, from the launcher's environment; None: it did not ask for DeepSpeed.

    Batch size, accumulation and clipping are those of the flags, whatever the launcher or its config say.
    Raises `UserError` for what is not supported.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() != "true":
        return None
    try:
        config = _settled(DeepSpeedPlugin().deepspeed_config)
    except ValueError as err:  # it names what is wrong with the file
        raise UserError(f"accelerate: the DeepSpeed config: {first_line(err)}") from None
    zero = config["zero_optimization"]
    if zero.get("stage") == 3:
        raise UserError(
            "accelerate: DeepSpeed's --zero_stage 3 is not supported, wanted 1 or 2, or --use_fsdp "
            "--fsdp_version 2, which shards what ZeRO-3 does"
        )
    if zero.get("stage") not in STAGES:
        raise UserError(f"accelerate: --zero_stage: found {zero.get('stage')}, wanted 1 or 2")
    for part in ("offload_optimizer", "offload_param"):
        if (zero.get(part) or {}).get("device", "none") != "none":
            raise UserError(f"accelerate: DeepSpeed's {part} is not supported, wanted none")
    for key in LEFT_OUT:
        if key in config:
            raise UserError(f"accelerate: {key} in the DeepSpeed config is not heeded; leave it out")
    for key in ("fp16", "bf16"):
        if config.get(key, {}).get("enabled"):
            raise UserError(
                f"accelerate: {key} in the DeepSpeed config is not heeded; leave it out, and give "
                "--mixed-precision bf16"
            )
    if options.optimizer != "adamw":  # Adafactor's row means and 8-bit blocks do not know of flat parts
        raise UserError(f"--optimizer: {options.optimizer} is not supported with DeepSpeed, wanted adamw")
    if "RANK" not in os.environ:
        raise UserError("accelerate: DeepSpeed needs a launcher, wanted accelerate launch --use_deepspeed …")
    config.pop("train_batch_size", None)  # follows
    return config | {
        "train_micro_batch_size_per_gpu": options.train_batch_size,
        "gradient_accumulation_steps": options.gradient_accumulation_steps,
        "gradient_clipping": options.max_grad_norm,
        "zero_allow_untested_optimizer": True,  # torch's AdamW
    }


def _settled(config: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is `auto`."""
    return {
        key: _settled(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if value != "auto"
    }


class Engine:
    """A DeepSpeed engine under the names that the loop has for an optimizer and for Accelerate."""

    def __init__(self, engine: Any, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> None:
        self.engine, self.zero = engine, engine.optimizer
        self.optimizer, self.accelerator = optimizer, accelerator

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def backward(self, loss: Tensor) -> None:
        """The gradient of a round's mean loss, (); after the last round its mean over the ranks."""
        self.engine.set_gradient_accumulation_boundary(self.accelerator.sync_gradients)
        self.engine.backward(loss)  # divides by the number of rounds

    def grad_norm(self) -> Tensor:
        """Of the gradient over all ranks, (), after the last round; infinite if it is not finite."""
        norm: Tensor = self.zero.scaled_global_norm()
        return norm

    def step(self) -> None:
        """After the last round: clip, update, let the gradient go."""
        if self.accelerator.sync_gradients:
            self.engine.step()

    def zero_grad(self, *, set_to_none: bool) -> None:
        """`step` does."""

    def state(self, parameters: Named) -> Iterator[tuple[str, Tensor]]:
        """`<parameter>/<state>`, whole, put together one after the other; all ranks call this."""
        from deepspeed.utils import safe_get_full_optimizer_state

        steps = [values["step"] for values in self.optimizer.state.values()]  # of each group, all the same
        for name, parameter in parameters if steps else ():
            for key in MOMENTS:
                yield f"{name}/{key}", safe_get_full_optimizer_state(parameter, key)
            yield f"{name}/step", steps[0]

    def load(self, parameters: Named, state: Mapping[str, Tensor]) -> None:
        """Take in what `state` gave, and the weights that the parameters have now. Raises KeyError."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_set_full_optimizer_state

        self.zero.refresh_fp32_params()
        step = state[f"{parameters[0][0]}/step"]
        for group, mine in zip(self.zero.bit16_groups, self.zero.single_partition_of_fp32_groups):
            self.optimizer.state[mine] = {key: torch.zeros_like(mine) for key in MOMENTS}
            self.optimizer.state[mine]["step"] = step.to(mine.device, copy=True)
            lazy_init_hp_params_optimizer_state(group, mine, self.optimizer.state)
        for name, parameter in parameters:
            for key in MOMENTS:
                value = state[f"{name}/{key}"].to(parameter.device).view_as(parameter)
                safe_set_full_optimizer_state(parameter, value, key)


def prepare_zero(
    accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer, config: dict[str, Any]
) -> tuple[Any, Engine]:
    """The engine, to be called as the module is, and once more as the optimizer. Raises `UserError`."""
    if accelerator.mixed_precision == "fp16":
        raise UserError("--mixed-precision: fp16 is not supported with DeepSpeed, wanted bf16 or no")
    os.environ.setdefault("DS_ACCELERATOR", accelerator.device.type)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # it is for inference on CPUs, and DeepSpeed would compile it for a minute
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    module = accelerator.prepare_model(module, evaluation_mode=True)  # autocast, nothing else
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    return engine, Engine(engine, optimizer, accelerator)
