"""LoRA without peft: forward hooks that add alpha / rank · B A x to what layers of a stock model return."""

import torch
from torch import Tensor, nn

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj")


def layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The attention layers that have a LoRA, by name."""
    return {name: m for name, m in model.named_modules() if name.endswith(TARGETS)}


def random_lora(model: nn.Module, rank: int, std: float = 0.1) -> dict[str, Tensor]:
    """`<layer>.lora_A.weight` and `….lora_B.weight`, neither of them zero."""
    generator = torch.Generator().manual_seed(7)
    return {
        f"{name}.lora_{matrix}.weight": std * torch.randn(shape, generator=generator)
        for name, layer in layers(model).items()
        for matrix, shape in (("A", (rank, layer.in_features)), ("B", (layer.out_features, rank)))
    }


def add_by_hand(model: nn.Module, lora: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Hang the LoRA on the model, whose weights are frozen. Returns copies of the tensors, to be trained."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in lora.items()}
    model.requires_grad_(False)
    for name, layer in layers(model).items():
        a, b = (leaves[f"{name}.lora_{matrix}.weight"] for matrix in "AB")

        def add(_: nn.Module, args: tuple[Tensor], out: Tensor, a: Tensor = a, b: Tensor = b) -> Tensor:
            return out + scale * (args[0] @ a.T @ b.T)

        layer.register_forward_hook(add)
    return leaves
