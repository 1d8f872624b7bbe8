"""Pictures from two output folders, by the stock pipelines."""

from pathlib import Path

import torch
from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline
from PIL import Image

PROMPTS = (
    "a red apple",
    "a drawing of a cat on a white background",
    "a yellow bus",
    "кошка",
)
PICTURES_A_PROMPT = 4


def draw_prompts(prior: Path, decoder: Path, resolution: int) -> list[list[Image.Image]]:
    """A row of pictures for each prompt, with fixed seeds."""
    prior_pipeline = KandinskyV22PriorPipeline.from_pretrained(prior)
    decoder_pipeline = KandinskyV22Pipeline.from_pretrained(decoder)
    for pipeline in (prior_pipeline, decoder_pipeline):
        pipeline.set_progress_bar_config(disable=True)
    rows = []
    for number, prompt in enumerate(PROMPTS):
        generator = torch.Generator().manual_seed(number)
        embeds = prior_pipeline(prompt, num_images_per_prompt=PICTURES_A_PROMPT, generator=generator)
        drawn = decoder_pipeline(
            **embeds, height=resolution, width=resolution, num_inference_steps=25, generator=generator
        )
        rows.append(drawn.images)
    return rows


def write_sheet(rows: list[list[Image.Image]], path: Path) -> None:
    """One PNG: prompts down the side, their pictures beside them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2 * PICTURES_A_PROMPT, 2.3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), PICTURES_A_PROMPT, squeeze=False)
    for row, pictures, prompt in zip(axes, rows, PROMPTS, strict=True):
        row[0].set_title(prompt, loc="left", fontsize=10)
        for cell, picture in zip(row, pictures, strict=True):
            cell.imshow(picture)
            cell.set_axis_off()
    figure.savefig(path, dpi=100)
