"""What the chosen flags need and may not be there: asked before anything is loaded."""

import importlib.util
import logging

from data_tools.errors import UserError
from train import trackers
from train.options import TrainOptions


def check_requirements(options: TrainOptions) -> None:
    """Raises `UserError` for a library or a device that a flag needs and that is missing."""
    # diffusers imports it wherever it is installed, and without a GPU it warns of kernels for inference
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    trackers.chosen(options.report_to)
    if options.optimizer == "adamw-8bit":
        installed("bitsandbytes", "8bit", "--optimizer: adamw-8bit")
    if options.attention == "xformers":
        import torch

        installed("xformers", "xformers", "--attention: xformers")
        if not torch.cuda.is_available():
            raise UserError("--attention: xformers needs a GPU, and torch sees none; give sdpa")
    if options.compile and options.compile_mode != "default" and options.gradient_accumulation_steps > 1:
        raise UserError(
            f"--compile-mode: {options.compile_mode} takes CUDA graphs, in which the gradients of several "
            "rounds overwrite each other; give default, or --gradient-accumulation-steps 1"
        )
    if options.lora_rank is not None:
        installed("peft", "lora", "--lora-rank:")


def installed(library: str, extra: str, flag: str) -> None:
    """Raises `UserError`, beginning with `flag`, unless the library is there."""
    if importlib.util.find_spec(library) is None:
        raise UserError(f"{flag} needs the library {library}: pip install 'kandinsky-cache[{extra}]'")
