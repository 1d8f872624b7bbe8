"""AdamW with decoupled weight decay on matrices only."""

import torch
from torch import nn

from train.options import TrainOptions

Named = list[tuple[str, nn.Parameter]]


def parameter_groups(named: Named, weight_decay: float) -> list[Named]:
    """[decayed, not decayed]: no decay for norms, biases and embeddings, which the reference decays too."""
    decayed = [(n, p) for n, p in named if p.ndim >= 2 and "embedding" not in n.rsplit(".", 1)[-1]]
    names = {name for name, _ in decayed} if weight_decay else set()
    return [[(n, p) for n, p in named if n in names], [(n, p) for n, p in named if n not in names]]


def make_optimizer(module: nn.Module, options: TrainOptions) -> tuple[torch.optim.AdamW, Named]:
    """The optimizer of the parameters that ask for gradients, and their names in its own order."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups = parameter_groups(named, options.adam_weight_decay)
    decays = (options.adam_weight_decay, 0.0)
    fused = all(parameter.device.type == "cuda" for _, parameter in named)
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for _, p in group], "weight_decay": decay}
            for group, decay in zip(groups, decays)
            if group
        ],
        lr=options.learning_rate,
        betas=(options.adam_beta1, options.adam_beta2),
        eps=options.adam_epsilon,
        fused=fused,
    )
    return optimizer, [pair for group in groups for pair in group]
