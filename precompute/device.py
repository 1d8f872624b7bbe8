"""Frozen models on their device, and arrays on their way there and back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray

from data_tools import models
from data_tools.errors import UserError
from precompute.options import EncoderOptions

TORCH_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load(model_class: Any, folder: Path, flag: str, options: EncoderOptions) -> Any:
    """A frozen model on its device. Raises `UserError` as `models.load` does."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):  # what they warn of is an error here
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    model = models.load(model_class, folder, flag=flag, torch_dtype=TORCH_DTYPES[options.precision])
    try:
        return model.requires_grad_(False).eval().to(options.device)
    except RuntimeError as err:
        if not is_out_of_memory(err):
            raise
        size = sum(parameter.nbytes for parameter in model.parameters())
        full = f"not enough memory for the {size / 1e9:.1f} GB of {folder.name}"
        raise UserError(f"--device: {options.device}: {full}: {str(err).splitlines()[0]}") from None


def is_out_of_memory(err: RuntimeError) -> bool:
    """True if the device's memory is full; cuBLAS and cuDNN say so with an error of their own."""
    return isinstance(err, torch.OutOfMemoryError) or "ALLOC_FAILED" in str(err)


def use_xformers(model: Any) -> None:
    """In diffusers' attention blocks. Raises `UserError` where xformers is not to be had."""
    try:
        model.enable_xformers_memory_efficient_attention()
    except ModuleNotFoundError:
        extra = "pip install 'kandinsky-cache[xformers]'"
        raise UserError(f"--attention: xformers is not installed; {extra}") from None
    except Exception as err:  # of a device or a build that it cannot run on
        raise UserError(f"--attention: xformers: {str(err).splitlines()[0]}; leave it at sdpa") from None


def to_device(model: Any, array: NDArray[Any]) -> torch.Tensor:
    """In the model's own arithmetic."""
    return torch.from_numpy(array).to(model.device, model.dtype)


def to_host(tensor: torch.Tensor, dtype: str) -> Callable[[], NDArray[Any]]:
    """On its way to the CPU in the stored dtype; a call waits for it. bfloat16 as uint16 of the same bits."""
    tensor = tensor.to(TORCH_DTYPES[dtype])
    if not tensor.is_cuda:
        return lambda: _stored(tensor, dtype)
    host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    host.copy_(tensor, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()

    def wait() -> NDArray[Any]:
        arrived.synchronize()
        return _stored(host, dtype).copy()  # the pinned memory is for the next

    return wait


def _stored(tensor: torch.Tensor, dtype: str) -> NDArray[Any]:
    tensor = tensor.contiguous()
    array: NDArray[Any] = (tensor.view(torch.uint16) if dtype == "bfloat16" else tensor).numpy()
    return array


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """The model computes in float32; its weights are those it has."""
    dtype = model.dtype
    try:
        model.float()
        yield
    finally:
        model.to(dtype)
