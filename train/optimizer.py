"""The optimizers: AdamW, AdamW with 8-bit moments, Adafactor. Decoupled weight decay, on matrices only."""

import torch
from torch import nn

from train.options import TrainOptions

Named = list[tuple[str, nn.Parameter]]


def parameter_groups(named: Named, weight_decay: float) -> list[Named]:
    """[decayed, not decayed]: no decay for norms, biases and embeddings, which the reference decays too."""
    decayed = [(n, p) for n, p in named if p.ndim >= 2 and "embedding" not in n.rsplit(".", 1)[-1]]
    names = {name for name, _ in decayed} if weight_decay else set()
    return [[(n, p) for n, p in named if n in names], [(n, p) for n, p in named if n not in names]]


def make_optimizer(module: nn.Module, options: TrainOptions) -> tuple[torch.optim.Optimizer, Named]:
    """The optimizer of the parameters that ask for gradients, and their names in its own order."""
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups = parameter_groups(named, options.adam_weight_decay)
    decays = (options.adam_weight_decay, 0.0)
    params = [
        {"params": [p for _, p in group], "weight_decay": decay}
        for group, decay in zip(groups, decays)
        if group
    ]
    return _make(params, options), [pair for group in groups for pair in group]


def _make(params: list[dict[str, object]], options: TrainOptions) -> torch.optim.Optimizer:
    lr = options.learning_rate
    if options.optimizer == "adafactor":
        # Shazeer and Stern 2018, arXiv 1804.04235: second moments as rows and columns, no first ones. An
        # eps_2 of 1 for their 1e-3: a rate is not made smaller for small weights (a LoRA begins at zero)
        return torch.optim.Adafactor(params, lr=lr, eps=(None, 1.0))
    betas, eps = (options.adam_beta1, options.adam_beta2), options.adam_epsilon
    if options.optimizer == "adamw-8bit":
        # Dettmers et al. 2022, arXiv 2110.02861: moments in blocks of 8-bit numbers
        import bitsandbytes

        made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(params, lr=lr, betas=betas, eps=eps)
        return made
    return torch.optim.AdamW(params, lr=lr, betas=betas, eps=eps, fused=True)
