"""`precompute`: run the frozen encoders once over a source, into a cache."""

import os
import re

import click

from data_tools import console, images, models
from data_tools.errors import UserError

PRECISION = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def _columns(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    for name in names:
        if not re.fullmatch(r"image|text|latents@[1-9]\d*", name):
            raise click.BadParameter(f"found {name!r}, wanted image, text or latents@RESOLUTION")
    return names


def _wanted(columns: tuple[str, ...] | None, resolutions: tuple[int, ...]) -> tuple[str, ...]:
    """The columns of this run. Raises `UserError` for flags that contradict each other or the models."""
    latents = tuple(f"latents@{side}" for side in dict.fromkeys(resolutions))
    if columns and not set(latents) <= set(columns):
        raise UserError(f"--resolution: {', '.join(latents)} is not among --columns {','.join(columns)}")
    wanted = columns or ("image", "text", *(latents or ("latents@512",)))
    for name in wanted:
        side = int(name.partition("@")[2] or 64)
        if side % 64 or not side:
            raise UserError(
                f"--resolution: found {side}, wanted a multiple of 64 (MoVQ and UNet halve it 6 times)"
            )
    return wanted


def _check_redo(redo: tuple[str, ...], wanted: tuple[str, ...], repair: bool) -> None:
    for name in redo:
        if name not in wanted:
            raise UserError(f"--redo: found {name!r}, wanted a column of this run: {', '.join(wanted)}")
    if redo and repair:
        raise UserError("--redo: makes a column anew, --repair mends it as it was; give one of them")


def _device(name: str | None) -> str:
    """The device asked for, or the best there is. Raises `UserError` for one that is not there."""
    import torch

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as err:  # torch raises either for a device that is not there
        raise UserError(f"--device: {name}: {str(err).splitlines()[0]}") from None
    return name


@click.command(name="precompute", context_settings=console.CONTEXT)
# Main options.
@click.option("--data", "--train-data-dir", required=True, metavar="DIR", help="Pictures with captions.")
@click.option("--cache", required=True, metavar="DIR|URL", help="The cache to fill; also s3://bucket/prefix.")
@click.option(
    "--prior-model",
    "--pretrained-prior-model-name-or-path",
    default=models.PRIOR,
    show_default=True,
    metavar="REPO|DIR",
    help="Has the CLIP text and vision encoders.",
)
@click.option(
    "--decoder-model",
    "--pretrained-decoder-model-name-or-path",
    default=models.DECODER,
    show_default=True,
    metavar="REPO|DIR",
    help="Has the MoVQ encoder.",
)
@click.option(
    "--resolution",
    multiple=True,
    type=click.IntRange(min=64),
    metavar="PX",
    help="Side of the squares for the decoder; may be given several times.  [default: 512]",
)
@click.option(
    "--columns",
    callback=_columns,
    metavar="NAMES",
    help="Only these, separated by commas: image, text, latents@PX.  [default: image,text and --resolution]",
)
@click.option("--caption-column", default="text", show_default=True, metavar="NAME")
# What is stored.
@click.option(
    "--precision",
    type=click.Choice([*PRECISION]),
    help="Arithmetic of the encoders.  [default: fp16 on a GPU, fp32 on the CPU]",
)
@click.option(
    "--dtype", type=click.Choice([*PRECISION]), default="fp16", show_default=True, help="As stored."
)
@click.option(
    "--alpha",
    type=click.Choice(images.ALPHA),
    default="white",
    show_default=True,
    help="Transparent pictures: laid on white, or alpha dropped as the diffusers scripts do.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1, max=images.MAX_PIXELS),
    default=images.MAX_PIXELS,
    show_default=True,
    metavar="PIXELS",
    help="Reject larger pictures.",
)
@click.option(
    "--format",
    type=click.Choice(["zarr", "webdataset"]),
    default="zarr",
    show_default=True,
    help="Container of new parts: zarr groups or tars.",
)
@click.option(
    "--tar-block",
    type=click.IntRange(min=0),
    default=0,
    metavar="ROWS",
    help="Rows in each member of a tar; 1: the classic one sample a key.  [default: 1 to 2.5 MB]",
)
# How the work is done.
@click.option(
    "--part-size",
    type=click.IntRange(min=1),
    metavar="SAMPLES",
    help="Unit of work and of commit.  [default: 2048; of an existing cache, its own]",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True, metavar="SAMPLES")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    default=min(8, os.cpu_count() or 1),
    show_default="CPU cores, at most 8",
    metavar="THREADS",
    help="Decode pictures.",
)
@click.option("--device", metavar="NAME", help="[default: cuda if there is one, else cpu]")
@click.option(
    "--prompts",
    default="",
    metavar="FILE",
    help="Also encode these prompts, one a line, so that trainers can draw them without CLIP.",
)
@click.option(
    "--redo",
    multiple=True,
    metavar="COLUMN",
    help="Make a column anew that was made otherwise; the old one stays in use until the new one is whole. "
    "May be given several times.",
)
@click.option("--repair", is_flag=True, help="Check every byte of the cache first and redo damaged parts.")
@click.option("-n", "--dry-run", is_flag=True, help="Print what would be done; write nothing.")
def precompute(
    data: str,
    cache: str,
    prior_model: str,
    decoder_model: str,
    resolution: tuple[int, ...],
    columns: tuple[str, ...] | None,
    caption_column: str,
    precision: str | None,
    dtype: str,
    alpha: str,
    max_pixels: int,
    format: str,
    tar_block: int,
    part_size: int | None,
    batch_size: int,
    workers: int,
    device: str | None,
    prompts: str,
    redo: tuple[str, ...],
    repair: bool,
    dry_run: bool,
) -> None:
    """Run the frozen encoders of Kandinsky 2.2 once over pictures and captions, into a cache.

    To resume an interrupted run, give the same command again; it does only what is missing.

    \b
    precompute --data pictures/ --cache shards/ --resolution 768
    """
    wanted = _wanted(columns, resolution)
    _check_redo(redo, wanted, repair)
    if prompts and "text" not in wanted:
        raise UserError(f"--prompts: wants the column text, and --columns is {','.join(wanted)}")
    from precompute.options import EncoderOptions, RunOptions
    from precompute.run import run

    device = _device(device)
    encoders = EncoderOptions(
        device=device,
        precision=PRECISION[precision or ("fp32" if device == "cpu" else "fp16")],
        dtype=PRECISION[dtype],
        alpha=alpha,
        prior_record=models.record(prior_model, cache),
        decoder_record=models.record(decoder_model, cache),
    )
    options = RunOptions(
        data=data,
        cache=cache,
        caption_column=caption_column,
        columns=wanted,
        prior_model=prior_model,
        decoder_model=decoder_model,
        part_size=part_size,
        batch_size=batch_size,
        workers=workers,
        max_pixels=max_pixels,
        format=format,
        tar_block=tar_block,
        repair=repair,
        redo=redo,
        prompts=prompts,
        encoders=encoders,
    )
    click.echo(run(options, dry_run=dry_run))


def main() -> None:
    console.run(precompute)
