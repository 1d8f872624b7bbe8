"""The loss on held-out samples, always with the same noise, timesteps and captions."""

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import nn

from data_tools.cache.reader import CacheReader
from train.batches import Batch, collate
from train.draws import Purpose, draw
from train.options import TrainOptions
from train.task import Loss, Task

Samples = NDArray[np.int64]


@torch.no_grad()
def held_out_loss(
    task: Task,
    loss: Loss,
    null: Batch,
    reader: CacheReader,
    samples: Samples,
    options: TrainOptions,
    accelerator: Accelerator,
) -> float:
    """Mean over `samples`, shared out over the ranks. The draws depend on the seed and the sample's place."""
    module: nn.Module = task.module  # not the DDP wrapper, whose forward would wait for the other ranks
    module.eval()
    total = torch.zeros(2, device=accelerator.device)  # sum of losses, number of them
    size, world = options.train_batch_size, accelerator.num_processes
    for start in range(accelerator.process_index * size, len(samples), size * world):
        chosen = samples[start : start + size]
        rows = {column: reader.rows(column, chosen)[0] for column in reader.columns}
        batch = {name: value.to(accelerator.device) for name, value in collate(reader, rows).items()}
        draws = draw(
            options.seed,
            0,
            torch.arange(start, start + len(chosen), device=accelerator.device),
            shape=task.noise_shape,
            num_train_timesteps=task.num_train_timesteps,
            cond_dropout=0.0,
            purpose=Purpose.VALIDATION,
        )
        losses = loss(module, batch, null, draws)  # (B,)
        total += torch.stack([losses.sum(), torch.tensor(float(len(chosen)), device=losses.device)])
    module.train()
    total = accelerator.reduce(total, reduction="sum")
    return float(total[0] / total[1])
