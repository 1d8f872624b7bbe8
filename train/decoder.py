"""`train-decoder`: the decoder's UNet, from cached latents and image embeddings.

Trains diffusers' `UNet2DConditionModel` to predict the noise in MoVQ latents given the CLIP image embedding,
as `train_text_to_image_decoder.py` does, without a vision encoder or MoVQ in memory.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from data_tools import console
from train.flags import shared_options
from train.old_flags import TrainCommand
from train.options import TrainOptions
from train.ranks import said_once_a_node

if TYPE_CHECKING:
    from data_tools.cache.mixture import Reader
    from train.export import Base
    from train.task import Task

SUBFOLDERS = ("unet", "scheduler")
LORA_TARGETS = "to_q,to_k,to_v,to_out.0,add_k_proj,add_v_proj"
"With the projections of the image embedding, which the reference's LoRA left untrained."


@click.command(name="train-decoder", cls=TrainCommand, context_settings=console.CONTEXT)
@click.option(
    "--decoder-model",
    "--pretrained-decoder-model-name-or-path",
    metavar="REPO|DIR",
    help="Start from this decoder.  [default: the repository the cache's latents were made with]",
)
@click.option(
    "--prior-model",
    "--pretrained-prior-model-name-or-path",
    metavar="REPO|DIR",
    help="Named in the result as the prior to draw with.  [default: the one the cache was made with]",
)
@click.option(
    "--resolution",
    type=click.IntRange(min=64),
    metavar="PX",
    help="Which latents to train on.  [default: the cache's, if it has one resolution only]",
)
@shared_options(output_dir="kandi_2_2-decoder-finetuned", lora_targets=LORA_TARGETS, trained="unet")
def train_decoder(**options: Any) -> None:
    """Fine-tune the Kandinsky 2.2 decoder's UNet from a cache.

    The result in --output-dir loads in KandinskyV22Pipeline and, with the prior its README.md names, in
    AutoPipelineForText2Image. To resume, give the same command again.

    \b
    train-decoder --cache shards/
    accelerate launch -m train.decoder --cache shards/ --mixed-precision bf16
    """
    from train.fit import fit

    with said_once_a_node():
        resolved = TrainOptions.given(**options)
        fit(*_prepare(resolved), resolved)


def _prepare(options: TrainOptions) -> "tuple[Task, Reader]":
    """Open the cache and the model. Raises `UserError` if they do not fit, before weights are loaded."""
    from data_tools import models
    from data_tools.errors import UserError
    from train.compatibility import (
        check_encoders,
        check_prior,
        check_same_clip,
        check_widths,
        latents_column,
    )
    from train.export import Base
    from train.load import required
    from train.reading import open_reader
    from train.record import check_output
    from train.requirements import check_requirements

    check_requirements(options)
    check_output(options.output_dir, "unet")
    latents = latents_column(options.places, options.resolution)
    reader = open_reader(options, ["image", latents])
    first = options.places[0].place
    name = options.decoder_model or models.recall(
        reader.columns[latents].model, first, flag="--decoder-model"
    )
    prior = options.prior_model or models.recall(reader.columns["image"].model, first, flag="--prior-model")
    check_prior(prior, flag="--prior-model")
    folder = models.local_folder(name, SUBFOLDERS, flag="--decoder-model")
    config = models.config(folder / "unet", flag="--decoder-model")
    width = required(config, "encoder_hid_dim", folder / "unet", "--decoder-model")
    channels = required(config, "in_channels", folder / "unet", "--decoder-model")
    check_widths(reader, {"image_embeds": width}, f"--decoder-model: {name}")
    check_same_clip(folder, reader, flag="--decoder-model")
    if config.get("dropout"):
        raise UserError(
            f"--decoder-model: {name} has dropout {config['dropout']}, wanted 0: resuming is exact"
        )
    (field,) = reader.columns[latents].fields
    if channels != field.shape[0]:
        raise UserError(
            f"--decoder-model: {name} takes {channels} input channels, the latents have "
            f"{field.shape[0]}; inpainting and ControlNet UNets are not trained yet"
        )
    base = Base.find(name, "unet", options.output_dir, flag="--decoder-model", save=options.save)
    check_encoders(base, {"movq": latents}, reader)
    return make_task(base, prior, options), reader


def make_task(base: "Base", prior: str, options: TrainOptions) -> "Task":
    """The decoder's task: model, loss and export."""
    import torch
    from diffusers import UNet2DConditionModel

    from data_tools import models
    from train.diffusion import from_scheduler_config
    from train.load import load_model
    from train.lora import lora_settings, make_adapter
    from train.objectives import decoder_loss
    from train.task import Loss, Task

    lora = lora_settings(options, LORA_TARGETS)
    unet = load_model(UNet2DConditionModel, base.folder / "unet", base.flag)
    if options.attention == "xformers":
        unet.enable_xformers_memory_efficient_attention()
    adapter = make_adapter(unet, lora, seed=options.seed)
    schedule = from_scheduler_config(models.config(base.folder / "scheduler", flag=base.flag), flag=base.flag)

    def make_loss(device: torch.device) -> Loss:
        return partial(decoder_loss, schedule=schedule.to(device), snr_gamma=options.snr_gamma)

    return Task(
        name="unet",
        base=base,
        model=unet,
        module=unet,
        null_column="image",
        noised="latents",
        num_train_timesteps=schedule.num_train_timesteps,
        make_loss=make_loss,
        make_draw_losses=make_loss,  # the UNet takes one draw a sample
        enable_gradient_checkpointing=unet.enable_gradient_checkpointing,
        compile=lambda mode: unet.compile(mode=mode, dynamic=False),
        prior=prior,
        adapter=adapter,
    )


def main() -> None:
    console.run(train_decoder)


if __name__ == "__main__":
    main()
