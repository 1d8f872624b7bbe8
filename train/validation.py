"""The loss on held-out samples, always with the same noise, timesteps and captions."""

from collections.abc import Iterator

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from data_tools.cache.mixture import Reader
from train.batches import Batch, Source, to_device
from train.draws import Purpose, draw
from train.options import TrainOptions
from train.task import Loss, Task

Samples = NDArray[np.int64]


@torch.no_grad()
def held_out_loss(
    task: Task,
    loss: Loss,
    null: Batch,
    reader: Reader,
    source: Source,
    samples: Samples,
    options: TrainOptions,
    accelerator: Accelerator,
) -> float:
    """Mean over `samples`, shared out over the ranks. The draws depend on the seed and the sample's place."""
    module: nn.Module = task.module  # not the DDP wrapper, whose forward would wait for the other ranks
    module.eval()
    total = torch.zeros(2, device=accelerator.device)  # sum of losses, number of them
    size, world = options.train_batch_size, accelerator.num_processes
    for places in list(_batches(reader, samples, size))[accelerator.process_index :: world]:
        rows = {column: reader.rows(column, samples[places])[0] for column in reader.columns}
        batch = to_device(source.collate(rows), accelerator.device)
        draws = draw(
            options.seed,
            0,
            torch.from_numpy(places).to(accelerator.device),
            shape=tuple(batch[task.noised].shape[1:]),
            num_train_timesteps=task.num_train_timesteps,
            cond_dropout=0.0,
            purpose=Purpose.VALIDATION,
        )
        losses = loss(module, batch, null, draws)  # (B,)
        total += torch.stack([losses.sum(), torch.tensor(float(len(places)), device=losses.device)])
    module.train()
    total = accelerator.reduce(total, reduction="sum")
    return float(total[0] / total[1])


def _batches(reader: Reader, samples: Samples, size: int) -> Iterator[Samples]:
    """Places in `samples`, at most `size` of them, all of one bucket, in each batch."""
    bucket = np.zeros_like(samples)
    for column in reader.columns:
        if reader.buckets(column):
            bucket = reader.bucket_of(column, samples)[0]
    for which in np.unique(bucket).tolist():
        places = np.flatnonzero(bucket == which)
        for start in range(0, len(places), size):
            yield places[start : start + size]
