"""From the options to a reader, and to where the rows of batches come from."""

from collections.abc import Sequence

import torch
from accelerate import Accelerator

from data_tools.cache.mixture import Reader, open_caches
from data_tools.cache.stream import Blocks
from train.batches import Disk, Slice, Source
from train.options import TrainOptions
from train.preload import Preloaded, check_memory
from train.sampling import Ordering


def open_reader(options: TrainOptions, columns: Sequence[str]) -> Reader:
    """The caches of `--cache`. Raises `UserError` for one that lacks a column, is unfinished or unlike."""
    keeps_blocks = options.order_kind == "block" and options.preload == "none"
    return open_caches(
        options.places,
        columns,
        allow_partial=options.allow_partial,
        paranoid=options.paranoid,
        block_samples=Blocks().samples if keeps_blocks else None,
    )


def ordering(options: TrainOptions, share: Slice) -> Ordering:
    """How the samples follow each other."""
    return Ordering(options.order_kind, options.tail, options.length_window(share.world_size))


def open_source(reader: Reader, options: TrainOptions, accelerator: Accelerator) -> Source:
    """Where batches come from; with `--preload` all rows are read here. Raises `UserError` without room."""
    if options.preload == "none":
        return Disk(reader)
    where = accelerator.device if options.preload == "device" else torch.device("cpu")
    check_memory(reader, where)
    accelerator.wait_for_everyone()  # no process takes memory while another counts what is free
    return Preloaded(reader, where, quiet=not accelerator.is_main_process)
