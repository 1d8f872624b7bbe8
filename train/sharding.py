"""Weights that are shared out over the ranks, by FSDP through Accelerate: `fully_shard`, version 2 of it.

Each rank keeps a part of every parameter (a `DTensor`, cut along its first axis), of its gradient and of its
optimizer state. A block of the model is put together when it is needed and let go afterwards.

    accelerate launch --use_fsdp --fsdp_version 2 -m train.prior --cache shards/
    ACCELERATE_USE_CPU=true accelerate launch --use_fsdp …        without a GPU, over gloo

What a checkpoint holds is whole: `gathered` puts a tensor together, `like` takes it apart again.
"""

import dataclasses
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin, gather
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from data_tools.errors import DataFault, UserError
from train.optimizer import Named
from train.ranks import WAIT_SECONDS
from train.zero import prepare_zero

BLOCK = re.compile(r"(.*\.)?((transformer|down|up)_blocks\.\d+|mid_block)")
"Parts of the diffusers models that are put together one at a time."


def fsdp_plugin(environment: Mapping[str, str]) -> FullyShardedDataParallelPlugin | None:
    """What `accelerate launch` has asked for; None: no FSDP. Raises `UserError` for what is not supported."""
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return None
    if environment.get("FSDP_VERSION", "1") != "2":
        raise UserError("accelerate: FSDP of version 1 is not supported, wanted --fsdp_version 2")
    plugin = FullyShardedDataParallelPlugin(cpu_ram_efficient_loading=False)
    if not hasattr(plugin, "fsdp_version"):
        raise UserError("accelerate: FSDP of version 2 needs accelerate 1.6 or newer")
    if plugin.activation_checkpointing:
        raise UserError(
            "accelerate: fsdp_activation_checkpointing is not heeded; give --gradient-checkpointing"
        )
    return plugin


def set_up_fsdp(accelerator: Accelerator, plugin: FullyShardedDataParallelPlugin, optimizer: str) -> None:
    """Have Accelerate shard on the CPU too, and add gradients up in float32. Raises `UserError`."""
    state = accelerator.state
    if accelerator.distributed_type == DistributedType.MULTI_CPU:
        # Accelerate takes the plugin on GPUs only; all that it does with it works over gloo as well
        state.fsdp_plugin = plugin
        state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        if accelerator.mixed_precision != "no":
            plugin.set_mixed_precision(accelerator.mixed_precision)
    if accelerator.mixed_precision == "fp16":
        raise UserError("--mixed-precision: fp16 is not supported with FSDP, wanted bf16 or no")
    if optimizer != "adamw":  # Adafactor's row means and 8-bit blocks do not know of shards
        raise UserError(f"--optimizer: {optimizer} is not supported with FSDP, wanted adamw")
    if plugin.mixed_precision_policy is not None:
        policy = dataclasses.replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)
        plugin.mixed_precision_policy = policy


def prepare(
    accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer, parameters: Named
) -> tuple[nn.Module, Any, Named]:
    """`accelerator.prepare`, with the parameters that the optimizer has afterwards, under their old names.

    Under DeepSpeed these stay the module's, which it trains by way of flat copies.
    """
    config = getattr(accelerator, "deepspeed_config", None)
    if config is not None:
        return *prepare_zero(accelerator, module, optimizer, config), parameters
    plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and not _chosen(plugin):
        from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

        plugin.auto_wrap_policy = transformer_auto_wrap_policy
        plugin.transformer_cls_names_to_wrap = block_classes(module)
    prepared, wrapped = accelerator.prepare(module, optimizer)
    if isinstance(prepared, FSDPModule):
        # also the outermost: what a validation leaves put together would not see weights that change after it
        prepared.set_reshard_after_forward(True)
    now = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return (
        prepared,
        wrapped,
        [(name, parameter) for (name, _), parameter in zip(parameters, now, strict=True)],
    )


def _chosen(plugin: FullyShardedDataParallelPlugin) -> bool:
    """Whether the user said what is put together at a time."""
    return bool(plugin.transformer_cls_names_to_wrap or plugin.min_num_params)


def block_classes(module: nn.Module) -> list[str]:
    """Class names of a diffusers model's blocks."""
    return sorted({type(part).__name__ for name, part in module.named_modules() if BLOCK.fullmatch(name)})


def clip_grad_norm(accelerator: Accelerator, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Clip to a norm over all ranks; the norm before it, ()."""
    if accelerator.distributed_type == DistributedType.FSDP:
        accelerator.unscale_gradients()
        return whole(nn.utils.clip_grad_norm_(parameters, max_norm))
    norm: Tensor = accelerator.clip_grad_norm_(parameters, max_norm)
    return norm


def class_of(model: nn.Module) -> Any:
    """The class that the model had before it was sharded."""
    return next(c for c in type(model).__mro__ if not issubclass(c, FSDPModule))


def is_sharded(tensors: Iterable[Tensor]) -> bool:
    return any(isinstance(tensor, DTensor) for tensor in tensors)


def local(tensor: Tensor) -> Tensor:
    """This rank's part."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor with all ranks' parts; they all call this."""
    if not isinstance(tensor, DTensor):
        return tensor
    there: Any = tensor.to(tensor.device_mesh.device_type)  # with fsdp_offload_params from the CPU
    complete: Tensor = there.full_tensor()
    return complete


def like(tensor: Tensor, own: Tensor | None) -> Tensor:
    """A whole tensor in parts as `own` is; all ranks call this. It stays whole beside one that is whole."""
    if not isinstance(own, DTensor):
        return tensor
    return distribute_tensor(tensor, own.device_mesh, own.placements).to(own.device)


def gathered(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Whole tensors in the memory of the main process, {} on the others; all ranks call this.

    One after the other: besides these the devices hold one whole tensor at a time.
    """
    main, found = PartialState().is_main_process, {}
    for name, tensor in tensors:
        complete = whole(tensor.detach())
        if main:
            found[name] = complete.cpu().contiguous()
    return found


def over_ranks(value: Tensor) -> Tensor:
    """The values () of all ranks, (ranks,)."""
    values: Tensor = gather(value.to(PartialState().device)[None])
    return values


@contextmanager
def main_writes() -> Iterator[bool]:
    """The body does its work where this is true, on the main process; a `DataFault` there ends all ranks.

    The others end without a word, and later: a launcher stops all as soon as one has ended.
    """
    state, fault = PartialState(), None
    try:
        yield state.is_main_process
    except DataFault as err:
        fault = err
    failed = over_ranks(torch.tensor(float(fault is not None), device=state.device))
    if fault is not None:
        raise fault
    if bool(failed.any()):
        time.sleep(WAIT_SECONDS)
        sys.exit(1)
