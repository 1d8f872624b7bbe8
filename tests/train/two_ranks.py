"""What each of two ranks does with a sharded prior, and what it sees; test_sharding.py starts it.

torchrun … -m tests.train.two_ranks CACHE FOLDER        leaves FOLDER/rank-0.json and rank-1.json
"""

import json
import math
import os
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import torch
from accelerate import Accelerator

from data_tools.errors import DataFault
from tests.train import runs
from train import checkpoint, sharding
from train.optimizer import make_optimizer


def sharded_training(cache, folder):
    """A prior in two shards, its optimizer after one step with made-up gradients, averages beside it."""
    task, _, options = runs.prepared("prior", cache, folder / "out")
    plugin = sharding.fsdp_plugin(os.environ)
    accelerator = Accelerator(fsdp_plugin=plugin)
    sharding.set_up_fsdp(accelerator, plugin, options.optimizer)
    optimizer, named = make_optimizer(task.module, options)
    module, _, named = sharding.prepare(accelerator, task.module, optimizer, named)
    for number, (_, parameter) in enumerate(named):
        parameter.grad = torch.full_like(parameter, (-1.0) ** number)
    optimizer.step()
    ema = SimpleNamespace(shadow=[2 * parameter.detach() for _, parameter in named])
    return module, checkpoint.Training(task.name, task.model, optimizer, named, None, ema)


@torch.no_grad()
def outputs_around_a_change(module, training):
    """Of the forward, with each weight as it is, halved, and as it was."""
    texts = (torch.ones(2, 64), torch.ones(2, 5, 64), torch.tensor([5, 3]))
    outputs = []
    for factor in (1.0, 0.5, 2.0):
        for _, parameter in training.parameters:
            sharding.local(parameter.detach()).mul_(factor)
        outputs.append(float(module(torch.ones(2, 64), torch.tensor([3, 5]), *texts).sum()))
    return outputs


def everything(training):
    """This rank's parts of all tensors that a checkpoint holds."""
    parameters = [parameter for _, parameter in training.parameters]
    states = [training.optimizer.state[parameter] for parameter in parameters]
    moments = [state[key] for state in states for key in sorted(state)]
    return [sharding.local(tensor.detach()) for tensor in (*parameters, *training.ema.shadow, *moments)]


def largest_with(training, number, value):
    """What `largest` is with a number in a weight of one rank."""
    parameters = [parameter.detach() for _, parameter in training.parameters]
    parameter = sharding.local(max(parameters, key=torch.Tensor.numel))  # small ones lie on one rank alone
    kept = parameter.clone()
    if torch.distributed.get_rank() == number:
        parameter[-1, -1] = value
    found = checkpoint.largest(training)
    parameter.copy_(kept)
    return found


def end_of_save_on_a_full_disk(training, folder):
    """How it ends on this rank."""
    sharding.WAIT_SECONDS = 0
    if torch.distributed.get_rank() == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        checkpoint.save(folder, 2, training, keep=1)
    except (DataFault, SystemExit) as end:
        return f"{type(end).__name__}: {end}"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "saved"


def main():
    cache, folder = Path(sys.argv[1]), Path(sys.argv[2])
    module, training = sharded_training(cache, folder)
    parameters = [parameter for _, parameter in training.parameters]
    seen = {
        "whole": sum(p.numel() for p in parameters),
        "here": sum(sharding.local(p).numel() for p in parameters),
        "outputs": outputs_around_a_change(module, training),
        "with_a_large_one": [largest_with(training, rank, -1e6) for rank in (0, 1)],
        "with_a_nan": [math.isnan(largest_with(training, rank, math.nan)) for rank in (0, 1)],
    }
    checkpoint.save(folder, 1, training, keep=None)
    before = [tensor.clone() for tensor in everything(training)]
    for tensor in everything(training):
        tensor.zero_()
    seen["step"] = checkpoint.load(folder / "checkpoint-1", training)
    seen["restored"] = all(map(torch.equal, before, everything(training)))
    seen["full_disk"] = end_of_save_on_a_full_disk(training, folder)
    rank = torch.distributed.get_rank()
    (folder / f"rank-{rank}.json").write_text(json.dumps(seen))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
