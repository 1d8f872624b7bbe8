"""The flags of `precompute`, in the order in which `--help` shows them."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from data_tools import images, models

PRECISION = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def _columns(_: click.Context, __: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",")))
    for name in names:
        if not re.fullmatch(r"image|text|latents@[1-9]\d*", name):
            raise click.BadParameter(f"found {name!r}, wanted image, text or latents@RESOLUTION")
    return names


_OPTIONS = [
    # Main options.
    click.option(
        "--data",
        "--train-data-dir",
        multiple=True,
        metavar="DIR|TARS|TABLE|hf:NAME",
        help="Pictures with captions: a folder, webdataset tars ('shards/{000..041}.tar', URLs), a CSV, TSV, "
        "JSON-lines or Parquet table, hf:NAME[:CONFIG][:SPLIT]. May be given several times.",
    ),
    click.option(
        "--cache", required=True, metavar="DIR|URL", help="The cache to fill; also s3://bucket/prefix."
    ),
    click.option(
        "--prior-model",
        "--pretrained-prior-model-name-or-path",
        default=models.PRIOR,
        show_default=True,
        metavar="REPO|DIR",
        help="Has the CLIP text and vision encoders.",
    ),
    click.option(
        "--decoder-model",
        "--pretrained-decoder-model-name-or-path",
        default=models.DECODER,
        show_default=True,
        metavar="REPO|DIR",
        help="Has the MoVQ encoder.",
    ),
    click.option(
        "--resolution",
        multiple=True,
        type=click.IntRange(min=64),
        metavar="PX",
        help="Side of the squares for the decoder; may be given several times.  [default: 512]",
    ),
    click.option(
        "--columns",
        callback=_columns,
        metavar="NAMES",
        help="Only these, separated by commas: image, text, latents@PX.  "
        "[default: image,text and --resolution]",
    ),
    # What is taken from the source.
    click.option(
        "--caption-column",
        multiple=True,
        metavar="NAME",
        help="Of metadata, tables and JSON; may hold lists, may be given several times.  [default: text]",
    ),
    click.option(
        "--image-column", metavar="NAME", help="Of tables: path or bytes.  [default: the usual names]"
    ),
    click.option(
        "--caption-lines", is_flag=True, help="Each line of a caption file is a caption of its own."
    ),
    click.option(
        "--lenient", is_flag=True, help="Decode captions that are not UTF-8 with replacement characters."
    ),
    click.option(
        "--max-samples", type=click.IntRange(min=1), metavar="COUNT", help="Only the first so many samples."
    ),
    click.option(
        "--select",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        metavar="FILE",
        help="Only the samples whose keys this file lists, one a line.",
    ),
    click.option(
        "--min-size",
        type=click.IntRange(min=1),
        default=1,
        show_default=True,
        metavar="PX",
        help="Reject pictures with a shorter side.",
    ),
    click.option(
        "--max-rejects",
        type=click.FloatRange(min=0, max=1),
        default=1.0,
        show_default=True,
        metavar="SHARE",
        help="End with exit code 1 if more of the samples are rejected.",
    ),
    click.option(
        "--allow-shrink",
        is_flag=True,
        help="Go on though more than half of the cache's samples are no longer in the source.",
    ),
    click.option(
        "--rehash",
        is_flag=True,
        help="Read every file to see if it has changed, not only where size or time differ.",
    ),
    click.option(
        "--retry-rejects",
        is_flag=True,
        help="Try again what these columns have rejected, under today's options, though nothing has changed.",
    ),
    # What is stored.
    click.option(
        "--precision",
        type=click.Choice([*PRECISION]),
        help="Arithmetic of the encoders.  [default: fp16 on a GPU, fp32 on the CPU]",
    ),
    click.option(
        "--dtype", type=click.Choice([*PRECISION]), default="fp16", show_default=True, help="As stored."
    ),
    click.option(
        "--alpha",
        type=click.Choice(images.ALPHA),
        default="white",
        show_default=True,
        help="Transparent pictures: laid on white, or alpha dropped as the diffusers scripts do.",
    ),
    click.option(
        "--icc", is_flag=True, help="Convert pictures with a colour profile to sRGB; the scripts do not."
    ),
    click.option(
        "--max-pixels",
        type=click.IntRange(min=1, max=2**31 - 1),
        default=images.MAX_PIXELS,
        show_default=True,
        metavar="PIXELS",
        help="Reject larger pictures; each of --workers may need 8 bytes of memory a pixel, or more.",
    ),
    click.option(
        "--format",
        type=click.Choice(["zarr", "webdataset"]),
        default="zarr",
        show_default=True,
        help="Container of new parts: zarr groups or tars.",
    ),
    click.option(
        "--tar-block",
        type=click.IntRange(min=0),
        default=0,
        metavar="ROWS",
        help="Rows in each member of a tar; 1: the classic one sample a key.  [default: 1 to 2.5 MB]",
    ),
    click.option(
        "--flip", is_flag=True, help="Also encode each picture mirrored left to right, as a second view."
    ),
    click.option(
        "--buckets",
        is_flag=True,
        help="Latents in the nearest of the shapes of at most the square's area: sides multiples of 64, up "
        "to 2:1.",
    ),
    # How the work is done.
    click.option(
        "--part-size",
        type=click.IntRange(min=1),
        metavar="SAMPLES",
        help="Unit of work and of commit.  [default: 2048; of an existing cache, its own]",
    ),
    click.option(
        "--batch-size", type=click.IntRange(min=1), default=32, show_default=True, metavar="SAMPLES"
    ),
    click.option(
        "--workers",
        type=click.IntRange(min=1),
        default=min(8, os.cpu_count() or 1),
        show_default="CPU cores, at most 8",
        metavar="THREADS",
        help="Decode pictures.",
    ),
    click.option("--device", metavar="NAME", help="[default: cuda if there is one, else cpu]"),
    click.option(
        "--attention",
        type=click.Choice(["sdpa", "xformers"]),
        default="sdpa",
        show_default=True,
        help="Of MoVQ; CLIP always has PyTorch's own.",
    ),
    click.option("--compile", is_flag=True, help="Compile the encoders with torch.compile."),
    click.option(
        "--prompts",
        default="",
        metavar="FILE",
        help="Also encode these prompts, one a line, so that trainers can draw them without CLIP.",
    ),
    click.option(
        "--redo",
        multiple=True,
        metavar="COLUMN",
        help="Make a column anew that was made otherwise; the old one stays in use until the new one is "
        "whole. May be given several times.",
    ),
    click.option(
        "--repair", is_flag=True, help="Check every byte of the cache first and redo damaged parts."
    ),
    click.option(
        "--audit",
        type=click.IntRange(min=1),
        metavar="COUNT",
        help="Re-encode COUNT random stored samples and compare them with what is stored; writes nothing.",
    ),
    click.option(
        "--tolerance",
        type=click.FloatRange(min=0, min_open=True),
        metavar="SHARE",
        help="Of --audit: the largest error, as a share of the stored values' RMS; of a row's mean error a "
        "quarter.  [default: by precision]",
    ),
    click.option(
        "--tflops",
        type=click.FloatRange(min=0, min_open=True),
        metavar="TFLOP/S",
        help="Of --dry-run: what a GPU achieves, for the GPU-hours.",
    ),
]


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: all flags."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
