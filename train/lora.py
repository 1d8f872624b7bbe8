"""LoRA (Hu et al. 2021): the base weights stay as they are, small low-rank updates of them are trained.

A targeted layer computes W x + alpha / rank · B A x with A (rank, in) random and B (out, rank) zero at first.
The layers are peft's, put on the diffusers model, whose forward calls them like the layers they replace.

    pytorch_lora_weights.safetensors
        transformer_blocks.0.attn1.to_q.lora_A.weight, ….lora_B.weight      as diffusers names them
        metadata: lora_adapter_metadata = {"r", "lora_alpha", "target_modules", …}

diffusers' `save_lora_adapter` writes the same tensors with all options of the installed peft, which an older
one cannot read, and with the dropout, which would then be active in a pipeline.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from data_tools.errors import UserError
from train.export import Base, Weights, export_pipeline
from train.load import load_model
from train.writing import writing

if TYPE_CHECKING:
    from train.options import TrainOptions

FILE = "pytorch_lora_weights.safetensors"
HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
LAYERS = (nn.Linear, nn.Conv2d)
"What can be adapted, and what autocast computes in half precision."
MODELS = {"prior": "PriorTransformer", "unet": "UNet2DConditionModel"}
"diffusers' classes of what is trained."
PATTERNS: dict[str, dict[str, int]] = {"rank_pattern": {}, "alpha_pattern": {}}
"All layers are alike; diffusers 0.34 looks for these keys."
_ADAPTER = "default"
"What peft calls it inside the model."


@dataclass(frozen=True)
class LoraSettings:
    rank: int
    alpha: int
    "The update is scaled by alpha / rank."
    dropout: float
    "Of the input of A."
    targets: list[str]
    "Layers whose name is one of these, or ends with a dot and one of these."


def lora_settings(options: "TrainOptions", default_targets: str) -> LoraSettings | None:
    """What the flags ask for; None: all weights are trained."""
    if options.lora_rank is None:
        return None
    given = default_targets if options.lora_targets is None else options.lora_targets
    targets = sorted({name.strip() for name in given.split(",")})
    alpha = options.lora_rank if options.lora_alpha is None else options.lora_alpha
    return LoraSettings(options.lora_rank, alpha, options.lora_dropout, targets)


class Adapter:
    """The LoRA of a diffusers model: the only weights that ask for gradients, in float32.

    `save_pretrained`, `state_dict` and `load_state_dict` are those of the LoRA alone, for checkpoints. Raises
    UserError for targets that the model does not have.
    """

    def __init__(self, model: Any, settings: LoraSettings, *, seed: int) -> None:
        from peft import LoraConfig

        _check_targets(model, settings.targets)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            lora_dropout=settings.dropout,
            target_modules=settings.targets,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # of A: the same on every rank
            model.add_adapter(config, _ADAPTER)
        self.model, self.settings = model, settings

    def parameters(self) -> dict[str, Tensor]:
        """By the name in the file."""
        return self.state_dict(keep_vars=True)

    def state_dict(self, *, keep_vars: bool = False) -> dict[str, Tensor]:
        """As of a module: what the parameters hold, or with `keep_vars` themselves."""
        return {
            name.replace(f".{_ADAPTER}.", "."): tensor
            for name, tensor in self.model.state_dict(keep_vars=keep_vars).items()
            if ".lora_" in name
        }

    def freeze_in(self, precision: str) -> None:
        """Keep the frozen layers in the half precision that they are computed in under autocast.

        Exact: autocast rounds the same weights the same way, each time. Norms and embeddings, which it leaves
        in float32, stay so. `precision` is accelerate's word; "no" changes nothing.
        """
        if precision not in HALF:
            return
        for layer in self.model.modules():
            if isinstance(layer, LAYERS) and not any(p.requires_grad for p in layer.parameters()):
                layer.to(HALF[precision])

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `FILE` into the folder; `load_lora_adapter` of the base model reads it."""
        self.write(folder, {name: t.cpu().contiguous() for name, t in self.state_dict().items()})

    def write(self, folder: str | Path, tensors: dict[str, Tensor]) -> None:
        """As `save_pretrained`, with other values than the model's."""
        write_lora(Path(folder) / FILE, tensors, self.settings.rank, self.settings.alpha)

    def load_state_dict(self, weights: dict[str, Tensor]) -> None:
        """Put a saved LoRA's tensors into the model. Raises RuntimeError if they are not this LoRA's."""
        own = self.state_dict()  # shares the model's memory
        found, wanted = ({n: tuple(t.shape) for n, t in tensors.items()} for tensors in (weights, own))
        if found != wanted:
            name = min(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
            raise RuntimeError(f"{name} is {found.get(name, 'missing')}, wanted {wanted.get(name, 'none')}")
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])


def make_adapter(model: Any, settings: LoraSettings | None, *, seed: int) -> Adapter | None:
    return None if settings is None else Adapter(model, settings, seed=seed)


def _check_targets(model: nn.Module, targets: list[str]) -> None:
    names = dict(model.named_modules())
    for target in targets:
        found = [n for n in names if target and (n == target or n.endswith(f".{target}"))]
        odd = [n for n in found if not isinstance(names[n], LAYERS)]
        if odd:
            kind = type(names[odd[0]]).__name__
            raise UserError(f"--lora-targets: {target}: {odd[0]} is a {kind}, wanted linear layers or Conv2d")
        if not found:
            raise UserError(
                f"--lora-targets: {type(model).__name__} has no layer {target!r}; wanted the ends of layers' "
                "names, for example to_q,to_v"
            )


def write_lora(file: Path, tensors: dict[str, Tensor], rank: int, alpha: int) -> None:
    """Write a LoRA in diffusers' format. Tensors are named `<layer>.lora_A.weight` and `….lora_B.weight`."""
    layers = sorted({name.rpartition(".lora_")[0] for name in tensors})
    config = {"r": rank, "lora_alpha": alpha, "target_modules": layers, **PATTERNS}
    file.parent.mkdir(parents=True, exist_ok=True)
    # one entry: safetensors writes several in any order, and equal runs should leave equal files
    save_file(tensors, file, {"lora_adapter_metadata": json.dumps(config)})


def seed_dropout(seed: int, step: int, rank: int) -> None:
    """Make torch's own generators, which dropout draws from, a function of (seed, step, rank).

    So a run continued at the same number of ranks is the run it would have been; at another it is not.
    """
    words = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]))


def export_lora(output: Path, base: Base, name: str, weights: Weights, card: Callable[[], str]) -> None:
    """Write `output`: the LoRA by itself, and the whole pipeline with the LoRA merged into the base.

    The weights merged into are the base's own in float32, whatever they were kept in while training.
    """
    import diffusers

    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        weights.save_pretrained(output)
    merged = load_model(getattr(diffusers, MODELS[name]), base.folder / name, base.flag)
    merged.load_lora_adapter(str(output), prefix=None, weight_name=FILE)
    merged.fuse_lora()
    merged.unload_lora()
    export_pipeline(output, base, name, merged, card)


def lora_record(adapter: Adapter | None) -> dict[str, Any] | None:
    """For run.json."""
    return None if adapter is None else asdict(adapter.settings)
