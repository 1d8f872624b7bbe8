"""`python -m train.convert_lora OLD NEW.safetensors`: LoRA files of diffusers' old Kandinsky 2.2 scripts.

Their `save_attn_procs` named a layer's two matrices after the attention processor they hung on:

    old   down_blocks.1.attentions.0.processor.add_k_proj_lora.down.weight      (rank, in), up: (out, rank)
    new   down_blocks.1.attentions.0.add_k_proj.lora_A.weight                   lora_B

Today's diffusers has no such processors; its `load_lora_adapter` takes the prior's old files, but of the
decoder's it drops `add_k_proj` and `add_v_proj`. The old scripts had no alpha: it is the rank, scale 1.
"""

import pickle
import re
from pathlib import Path

import click
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from data_tools import console
from data_tools.errors import UserError
from data_tools.models import first_line
from train.lora import write_lora
from train.writing import writing

OLD_NAME = re.compile(
    r"(?:unet\.|prior\.)?(.+)\.processor"
    r"\.(to_q|to_k|to_v|to_out|add_k_proj|add_v_proj)_lora\.(down|up)\.weight"
)
MATRICES = {"down": "lora_A", "up": "lora_B"}


@click.command(name="train.convert_lora", context_settings=console.CONTEXT)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
def convert_lora(old: Path, new: Path) -> None:
    """Rewrite OLD, a LoRA of diffusers' old Kandinsky 2.2 scripts (.safetensors or .bin), as NEW.

    NEW, a .safetensors file, is what load_lora_adapter of the prior or of the decoder's UNet reads.
    """
    if new.suffix != ".safetensors":
        raise UserError(f"{new}: wanted a name that ends with .safetensors")
    if new.exists():
        raise UserError(f"{new}: is there already, wanted the name of a new file")
    tensors, rank = converted(_read(old), old)
    temporary = new.with_name(f".tmp-{new.name}")
    try:
        with writing(new):
            write_lora(temporary, tensors, rank, alpha=rank)
            temporary.rename(new)
    finally:
        temporary.unlink(missing_ok=True)
    click.echo(f"{new}: {len(tensors) // 2} layers of rank {rank}")


def converted(old: dict[str, Tensor], file: Path) -> tuple[dict[str, Tensor], int]:
    """The same matrices under today's names, and their rank. Raises `UserError`, beginning with `file`."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in sorted(old.items(), key=lambda item: str(item[0])):
        match = OLD_NAME.fullmatch(str(name))
        if match is None or tensor.ndim != 2:
            raise UserError(
                f"{file}: holds {name}, wanted names like ….processor.to_q_lora.down.weight only: it is no "
                "LoRA of diffusers' old Kandinsky 2.2 scripts"
            )
        block, layer, matrix = match.groups()
        layer = "to_out.0" if layer == "to_out" else layer
        tensors[f"{block}.{layer}.{MATRICES[matrix]}.weight"] = tensor.contiguous()
    ranks = {t.shape[0 if ".lora_A." in name else 1] for name, t in tensors.items()}
    layers = {name.rpartition(".lora_")[0] for name in tensors}
    if len(tensors) != 2 * len(layers) or len(ranks) != 1:
        raise UserError(
            f"{file}: {len(layers)} layers with {len(tensors)} matrices of ranks {sorted(ranks)}, wanted two "
            "matrices for each layer, all of one rank"
        )
    return tensors, ranks.pop()


def _read(file: Path) -> dict[str, Tensor]:
    """Of safetensors, or tensors that torch.save wrote: nothing in a pickle is run. Raises `UserError`."""
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        tensors = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError) as err:
        raise UserError(f"{file}: cannot be read: {first_line(err)}") from None
    except pickle.UnpicklingError:  # torch's words advise to run what is in it
        tensors = None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise UserError(f"{file}: holds something else than named tensors, and nothing else is unpickled")
    return tensors


def main() -> None:
    console.run(convert_lora)


if __name__ == "__main__":
    main()
