"""`train-prior`: the prior, from cached image and text embeddings.

Trains diffusers' `PriorTransformer` to predict the (normalised) CLIP image embedding from its noisy version
and the text, as `train_text_to_image_prior.py` does, without a text or vision encoder in memory.
"""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from data_tools import console, models
from train.flags import shared_options
from train.old_flags import TrainCommand
from train.options import TrainOptions
from train.ranks import said_once_a_node

if TYPE_CHECKING:
    from data_tools.cache.mixture import Reader
    from train.export import Base
    from train.preview import PreviewPlan
    from train.task import Task

SUBFOLDERS = ("prior", "scheduler")
LORA_TARGETS = "to_q,to_k,to_v,to_out.0"
ROW_MULTIPLE = 16
"Of text rows, with --compile: five shapes up to 77."


@click.command(name="train-prior", cls=TrainCommand, context_settings=console.CONTEXT)
@click.option(
    "--prior-model",
    "--pretrained-prior-model-name-or-path",
    metavar="REPO|DIR",
    help="Start from this prior.  [default: the repository the cache's text column was made with]",
)
@click.option(
    "--group-by-length/--no-group-by-length",
    default=True,
    show_default=True,
    help="Batches of captions of like length: less padding, each sample still once an epoch.",
)
@click.option(
    "--noise-draws",
    type=click.IntRange(1, 64),
    default=4,
    show_default=True,
    metavar="K",
    help="Noises and timesteps of a sample in a step, at one reading of its caption; 1 is the reference.",
)
@click.option(
    "--sampled-validation",
    type=click.IntRange(min=0),
    default=32,
    show_default=True,
    metavar="SAMPLES",
    help="Held-out samples whose embedding is sampled at each validation, with guidance 1 and 4; 0: none.",
)
@click.option(
    "--validation-prompts",
    "--validation-prompt",
    multiple=True,
    metavar="TEXT",
    help="Draw pictures of these at each validation. Prompts that are not in the cache (precompute "
    "--prompts) take the base's text encoder, loaded for them.  [default: those in the cache, if "
    "--decoder-model is given]",
)
@click.option(
    "--num-validation-images",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    metavar="COUNT",
    help="For each prompt.",
)
@click.option(
    "--decoder-model",
    "--pretrained-decoder-model-name-or-path",
    metavar="REPO|DIR",
    help="Draws the validation pictures, loaded only then.  [default: the repository the cache's latents "
    f"were made with, else {models.DECODER}]",
)
@click.option(
    "--resolution",
    type=click.IntRange(min=64),
    default=512,
    show_default=True,
    metavar="PX",
    help="A side of the validation pictures.",
)
@shared_options(output_dir="kandi_2_2-prior-finetuned", lora_targets=LORA_TARGETS, trained="prior")
def train_prior(**options: Any) -> None:
    """Fine-tune the Kandinsky 2.2 prior from a cache.

    The result in --output-dir loads in KandinskyV22PriorPipeline. To resume, give the same command again.

    \b
    train-prior --cache shards/
    accelerate launch -m train.prior --cache shards/ --mixed-precision bf16
    """
    from train.fit import fit

    with said_once_a_node():
        resolved = TrainOptions.given(**options)
        fit(*_prepare(resolved), resolved)


def _prepare(options: TrainOptions) -> "tuple[Task, Reader]":
    """Open the cache and the model. Raises `UserError` if they do not fit, before weights are loaded."""
    from train.compatibility import check_encoders, check_same_clip, check_widths
    from train.export import Base
    from train.load import required
    from train.preview import plan_previews
    from train.reading import open_reader
    from train.record import check_output
    from train.requirements import check_requirements

    check_requirements(options)
    check_output(options.output_dir, "prior")
    reader = open_reader(options, ["image", "text"])
    first = options.places[0].place
    name = options.prior_model or models.recall(reader.columns["text"].model, first, flag="--prior-model")
    folder = models.local_folder(name, SUBFOLDERS, flag="--prior-model")
    config = models.config(folder / "prior", flag="--prior-model")
    dim = required(config, "embedding_dim", folder / "prior", "--prior-model")
    wanted = {
        "image_embeds": dim,
        "prompt_embeds": config.get("embedding_proj_dim") or dim,
        "text_encoder_hidden_states": dim,
    }
    check_widths(reader, wanted, f"--prior-model: {name}")
    check_same_clip(folder, reader, flag="--prior-model")
    base = Base.find(name, "prior", options.output_dir, flag="--prior-model", save=options.save)
    check_encoders(base, {"image_encoder": "image", "text_encoder": "text"}, reader)
    preview = plan_previews(options, reader, base)
    return make_task(base, options, preview), reader


def make_task(base: "Base", options: TrainOptions, preview: "PreviewPlan | None" = None) -> "Task":
    """The prior's task: model, loss, sampler and export."""
    import torch
    from diffusers import PriorTransformer

    from train.attention import KERNELS
    from train.diffusion import from_scheduler_config
    from train.load import load_model
    from train.lora import lora_settings, make_adapter
    from train.objectives import prior_draw_losses, prior_loss
    from train.prior_model import CausalPrior
    from train.sampler import make_scheduler, sample_embeddings
    from train.task import Loss, Sampler, Task

    lora = lora_settings(options, LORA_TARGETS)
    schedule = from_scheduler_config(models.config(base.folder / "scheduler", flag=base.flag), flag=base.flag)
    scheduler: Any = None
    if options.sampled_validation or preview:
        scheduler = make_scheduler(base.folder / "scheduler", flag=base.flag)
    prior = load_model(PriorTransformer, base.folder / "prior", base.flag)
    adapter = make_adapter(prior, lora, seed=options.seed)
    module = CausalPrior(prior, KERNELS[options.attention])
    clip_mean, clip_std = (stat.detach().clone() for stat in (prior.clip_mean, prior.clip_std))

    def stats(device: torch.device) -> dict[str, Any]:
        return {"clip_mean": clip_mean.to(device), "clip_std": clip_std.to(device)}

    def make_loss(loss: Callable[..., torch.Tensor], device: torch.device) -> Loss:
        multiple = ROW_MULTIPLE if options.compile else 1
        fixed = {"schedule": schedule.to(device), "snr_gamma": options.snr_gamma, "row_multiple": multiple}
        return partial(loss, **fixed, **stats(device))

    def make_sampler(device: torch.device) -> Sampler:
        return partial(sample_embeddings, scheduler=scheduler, **stats(device))

    return Task(
        name="prior",
        base=base,
        model=prior,
        module=module,
        null_column="text",
        noised="image_embeds",
        num_train_timesteps=schedule.num_train_timesteps,
        make_loss=partial(make_loss, prior_loss),
        make_draw_losses=partial(make_loss, prior_draw_losses),
        validation_draws=4,  # one in each quarter of the schedule
        make_sampler=make_sampler if scheduler else None,
        preview=preview,
        enable_gradient_checkpointing=module.enable_gradient_checkpointing,
        compile=module.compile_with,
        adapter=adapter,
    )


def main() -> None:
    console.run(train_prior)


if __name__ == "__main__":
    main()
