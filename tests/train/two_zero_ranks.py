"""What each of two ranks sees of a prior under DeepSpeed; test_zero.py starts it.

torchrun … -m tests.train.two_zero_ranks CACHE FOLDER        leaves FOLDER/rank-0.json and rank-1.json
"""

import json
import math
import sys
from pathlib import Path

import torch

from data_tools.errors import DataFault
from tests.train import runs
from train import checkpoint, sharding
from train.accelerators import make_accelerator
from train.guard import Guard
from train.optimizer import make_optimizer

TEXTS = (torch.ones(2, 64), torch.ones(2, 5, 64), torch.tensor([5, 3]))


class Watched:
    """A prior in its engine, and the guard."""

    def __init__(self, cache, folder):
        task, _, options = runs.prepared("prior", cache, folder / "out")
        self.accelerator = make_accelerator(options)
        self.optimizer, named = make_optimizer(task.module, options)
        prepared = sharding.prepare(self.accelerator, task.module, self.optimizer, named)
        self.module, self.engine, self.named = prepared
        self.training = checkpoint.Training(
            task.name, task.model, self.optimizer, named, None, None, self.engine
        )
        rank = self.accelerator.process_index
        self.guard = Guard(self.accelerator, self.optimizer, lambda step: [f"picture-{rank}"])

    def take(self, step, *, loss=1.0, gradient=1.0):
        """One step; on rank 1 with this loss, as the guard sees it, and this factor of the gradient."""
        if self.accelerator.process_index == 0:
            loss = gradient = 1.0
        before = [parameter.detach().clone() for _, parameter in self.named]
        self.engine.backward(gradient * self.module(torch.ones(2, 64), torch.tensor([3, 5]), *TEXTS).mean())
        self.guard.add(torch.tensor([loss]))
        self.guard.look(step, self.engine.grad_norm())
        self.engine.step()
        said = ""
        try:
            self.guard.check()
        except DataFault as fault:
            said = str(fault)
        after = [parameter.detach() for _, parameter in self.named]
        self.guard.bad_step.fill_(-1)
        return {"changed": not all(map(torch.equal, before, after)), "said": said}


def largest(watched):
    """With a number in a moment of rank 1 alone."""
    if watched.accelerator.process_index == 1:
        next(iter(watched.optimizer.state.values()))["exp_avg"][3] = 1e6
    return checkpoint.largest(watched.training)


def main():
    cache, folder = Path(sys.argv[1]), Path(sys.argv[2])
    watched = Watched(cache, folder)
    seen = {
        "sound": watched.take(0),
        "loss": watched.take(1, loss=math.inf),
        "gradient": watched.take(1, gradient=math.inf),
        "here": sum(state["exp_avg"].numel() for state in watched.optimizer.state.values()),
        "whole": sum(parameter.numel() for _, parameter in watched.named),
        "largest": largest(watched),
    }
    rank = watched.accelerator.process_index
    (folder / f"rank-{rank}.json").write_text(json.dumps(seen))
    watched.accelerator.wait_for_everyone()
    watched.accelerator.end_training()


if __name__ == "__main__":
    main()
