"""Device, precision, ranks and trackers, from the options and the launcher's environment."""

import os

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    patch_environment,
)

from data_tools.errors import UserError
from train import trackers
from train.options import TrainOptions
from train.requirements import installed
from train.sharding import fsdp_plugin, set_up_fsdp
from train.zero import deepspeed_config

KINDS = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.MULTI_CPU, DistributedType.FSDP)


def make_accelerator(options: TrainOptions) -> Accelerator:
    """Raises `UserError` for what cannot be kept."""
    torch.backends.cuda.matmul.allow_tf32 = options.allow_tf32
    plugin = fsdp_plugin(os.environ)
    config = deepspeed_config(options)
    if config is not None:
        installed("deepspeed", "deepspeed", "accelerate: --use_deepspeed")
    with patch_environment(ACCELERATE_USE_DEEPSPEED="false"):
        accelerator = Accelerator(
            mixed_precision=options.mixed_precision,
            fsdp_plugin=plugin,
            # as a plugin: the environment variable of `accelerate launch` would win over a plain number
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=options.gradient_accumulation_steps, sync_with_dataloader=False
            ),
            log_with=trackers.chosen(options.report_to) or None,
            project_config=ProjectConfiguration(
                project_dir=str(options.output_dir), logging_dir=str(trackers.logging_dir(options))
            ),
        )
    accelerator.deepspeed_config = config  # for `train.sharding.prepare`
    if plugin is not None:
        set_up_fsdp(accelerator, plugin, options.optimizer)
    if accelerator.distributed_type not in KINDS:
        kind = accelerator.distributed_type.value
        raise UserError(f"accelerate: {kind} is not supported, wanted one process, DDP, FSDP or DeepSpeed")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != accelerator.num_processes:  # accelerate starts that many runs of one process each
        raise UserError(
            f"WORLD_SIZE: {world} processes were started, but accelerate sees {accelerator.num_processes}; "
            "without a GPU set ACCELERATE_USE_CPU=true"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("--mixed-precision: fp16 needs a GPU, wanted bf16 or no on the CPU")
    return accelerator
